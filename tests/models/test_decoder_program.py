"""What XLA makes of a forward pass: work that was once done in every layer at every step must not come back."""

import jax
import jax.numpy as jnp
import pytest

from jaxserve.models import ModelConfig, model_for

CONFIG = ModelConfig(
    architecture="LlamaForCausalLM", vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=8, max_position_embeddings=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def program() -> str:
    model = model_for(CONFIG)

    def attend(layer, q, k, v, *, sliding_window):
        return q + jnp.repeat(k + v, 2, axis=1)

    def run(params, tokens, positions):
        return model.logits(params, CONFIG, model.forward(params, CONFIG, tokens, positions, attend))

    tokens = jax.ShapeDtypeStruct((16,), jnp.int32)
    return jax.jit(run).lower(model.abstract_params(CONFIG, jnp.float32), tokens, tokens).compile().as_text()


def test_angles_are_computed_once_for_all_layers(program):
    assert program.count(" cosine(") == program.count(" sine(") == 1


def test_no_weight_is_copied_or_transposed(program):
    assert " copy(" not in program
    assert " transpose(" not in program
