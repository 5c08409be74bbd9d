"""The last layer for some tokens only: the work of those tokens. `suite` checks that the numbers are the same."""

import re

import jax.numpy as jnp

from jaxserve.core.config import EngineConfig
from jaxserve.core.plan import Bucket
from jaxserve.models import ModelConfig, model_for
from jaxserve.parallel.placement import Placement
from jaxserve.runtime.geometry import Geometry
from jaxserve.runtime.programs.lowering import Lowering

SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8,
    "max_position_embeddings": 64,
}  # fmt: skip


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
