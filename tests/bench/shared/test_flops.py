"""What steps multiply with weights, beside the shapes of the weights themselves."""

import jax
import jax.numpy as jnp
import pytest

from bench.shared.flops import matmul_flops, shape_of
from bench.shared.models import LLAMA_1B, MODELS
from bench.shared.workload import LLAMA_32M
from jaxserve.checkpoints import config_from_hf
from jaxserve.models.registry import model_for

CONFIGS = {"32m": config_from_hf(LLAMA_32M)} | MODELS


@pytest.mark.parametrize("name", CONFIGS)
def test_a_token_that_samples_meets_every_matrix_but_the_embedding(name: str) -> None:
    config = CONFIGS[name]
    params = model_for(config).abstract_params(config, jnp.float32)
    matrices = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim > 1)
    embedding = 0 if config.tie_word_embeddings else params["embed"].size
    assert matmul_flops(config, 1, 1) == 2 * (matrices - embedding)
    assert shape_of(config).parameters == matrices


@pytest.mark.parametrize("fused", [False, True])
def test_another_owes_the_last_layer_its_key_and_value(fused: bool) -> None:
    layers = model_for(LLAMA_1B).abstract_params(LLAMA_1B, jnp.float32)["layers"]
    matrices = [{name: leaf.size for name, leaf in layer.items() if leaf.ndim > 1} for layer in layers]
    group = LLAMA_1B.group_size
    owed = matrices[-1]["wqkv"] if fused else matrices[-1]["wqkv"] * 2 // (group + 2)
    more = matmul_flops(LLAMA_1B, 101, 1, fused_queries=fused) - matmul_flops(LLAMA_1B, 100, 1, fused_queries=fused)
    assert more == 2 * (sum(sum(layer.values()) for layer in matrices[:-1]) + owed)
