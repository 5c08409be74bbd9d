"""The last layer for some tokens only: the same numbers, and the work of those tokens."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.core.config import EngineConfig
from jaxserve.core.plan import Bucket
from jaxserve.models import MODELS, ModelConfig, model_for, random_params
from jaxserve.models.dense_attention import dense_attention
from jaxserve.parallel.placement import Placement
from jaxserve.runtime.geometry import Geometry
from jaxserve.runtime.programs.lowering import Lowering

SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8,
    "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("architecture", MODELS)
def test_some_rows_end_as_they_would_among_all(architecture: str, layers: int) -> None:
    config = ModelConfig(
        architecture=architecture, num_layers=layers, qkv_bias=True, output_bias=True, qk_norm=True, **SHAPE
    )  # fmt: skip
    model, params = model_for(config), random_params(config, seed=1, dtype=jnp.float32)
    tokens, positions = jnp.arange(11, dtype=jnp.int32) * 5, jnp.arange(11, dtype=jnp.int32)
    rows = jnp.array([10, 0, 4, 4], jnp.int32)
    dense = dense_attention(positions)

    def attend(layer, q, k, v, *, sliding_window):
        if q.shape[0] == k.shape[0]:
            return dense(layer, q, k, v, sliding_window=sliding_window)
        among_all = jnp.zeros((k.shape[0], *q.shape[1:])).at[rows].set(q)
        return dense(layer, among_all, k, v, sliding_window=sliding_window)[rows]

    whole = model.forward(params, config, tokens, positions, attend)
    x = model.body(params, config, tokens, positions, attend)
    ending = model.ending(params, config, x, positions, attend, rows)
    np.testing.assert_allclose(ending, whole[rows], rtol=1e-5, atol=1e-5)


def test_a_step_computes_its_last_feed_forward_for_the_rows_that_end_in_it() -> None:
    config = ModelConfig(architecture="LlamaForCausalLM", num_layers=3, **SHAPE)
    settings = EngineConfig.from_settings(max_num_seqs=4)
    geometry = Geometry.of(config, settings, "float32", num_blocks=8)
    params = model_for(config).abstract_params(config, jnp.float32)
    lowering = Lowering(geometry, params, Placement.default(), settings.runtime)
    step = lowering.model_program(Bucket(decode_rows=4, prefill_tokens=32, prefill_rows=2, sample_rows=8)).as_text()
    of_tokens = re.findall(r"dot_general .*-> tensor<(\d+)x2x48xf32>", step)
    assert of_tokens == ["36", "36", "6"]
    decode = lowering.model_program(Bucket(decode_rows=4, prefill_tokens=0, prefill_rows=0, sample_rows=8)).as_text()
    assert re.findall(r"dot_general .*-> tensor<(\d+)x2x48xf32>", decode) == ["4", "4", "4"]
