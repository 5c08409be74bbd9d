"""A run's matmuls as `bench.throughput` counts them: every weight that a token meets."""

import jax
import jax.numpy as jnp
import pytest

from bench.throughput import matmul_flops
from bench.workload import LLAMA_32M, REQUESTS
from jaxserve.models.config import ModelConfig
from jaxserve.models.registry import model_for


def test_the_flops_of_an_output_are_those_of_every_weight_but_the_embedding() -> None:
    config = ModelConfig.from_hf(LLAMA_32M)
    params = model_for(config).abstract_params(config, jnp.float32)
    matrices = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim > 1) - params["embed"].size
    assert matmul_flops(config, 0, 2)[1] == 2 * REQUESTS * matrices


def test_a_prompt_token_owes_the_last_layer_no_feed_forward() -> None:
    config = ModelConfig.from_hf(LLAMA_32M)
    layers = model_for(config).abstract_params(config, jnp.float32)["layers"]
    matrices = [{name: leaf.size for name, leaf in layer.items() if leaf.ndim > 1} for layer in layers]
    more = matmul_flops(config, 101, 1)[0] - matmul_flops(config, 100, 1)[0]
    assert more == pytest.approx(2 * (sum(sum(layer.values()) for layer in matrices[:-1]) + matrices[-1]["wqkv"]))
