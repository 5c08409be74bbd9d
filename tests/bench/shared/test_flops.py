"""What steps multiply with weights, beside the shapes of the weights themselves."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from bench.shared.flops import matmul_flops, size_of
from bench.shared.models import LLAMA_1B, MODELS
from bench.shared.workload import LLAMA_32M
from jaxserve.checkpoints import config_from_hf
from jaxserve.costs.roofline import ModelSize
from jaxserve.models.registry import model_for

CONFIGS = {"32m": config_from_hf(LLAMA_32M)} | MODELS


@pytest.mark.parametrize("name", CONFIGS)
def test_a_token_that_samples_meets_every_matrix_but_the_embedding(name: str) -> None:
    config = CONFIGS[name]
    params = model_for(config).abstract_params(config, jnp.float32)
    matrices = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim > 1)
    embedding = 0 if config.tie_word_embeddings else params["embed"].size
    assert matmul_flops(config, 1, 1) == 2 * (matrices - embedding)
    assert size_of(config).parameters == matrices


@pytest.mark.parametrize("name", CONFIGS)
def test_the_roofline_counts_the_same_from_a_config_json(name: str, tmp_path: Path) -> None:
    config, path = CONFIGS[name], tmp_path / "config.json"
    names = {
        "num_hidden_layers": config.num_layers, "hidden_size": config.hidden_size, "vocab_size": config.vocab_size,
        "intermediate_size": config.intermediate_size, "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads, "head_dim": config.head_dim,
        "tie_word_embeddings": config.tie_word_embeddings,
    }  # fmt: skip
    path.write_text(json.dumps(names))
    assert ModelSize.from_file(path) == size_of(config)


@pytest.mark.parametrize("fused", [False, True])
def test_another_owes_the_last_layer_its_key_and_value(fused: bool) -> None:
    layers = model_for(LLAMA_1B).abstract_params(LLAMA_1B, jnp.float32)["layers"]
    matrices = [{name: leaf.size for name, leaf in layer.items() if leaf.ndim > 1} for layer in layers]
    group = LLAMA_1B.group_size
    owed = matrices[-1]["wqkv"] if fused else matrices[-1]["wqkv"] * 2 // (group + 2)
    more = matmul_flops(LLAMA_1B, 101, 1, fused_queries=fused) - matmul_flops(LLAMA_1B, 100, 1, fused_queries=fused)
    assert more == 2 * (sum(sum(layer.values()) for layer in matrices[:-1]) + owed)
