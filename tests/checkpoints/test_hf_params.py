"""Arrays with Hugging Face's names become the parameters that their file would give."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxserve.checkpoints import load, params_from_hf
from jaxserve.core.errors import ParamsMismatch

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.mark.parametrize("name", ["llama3.2", "mistral", "qwen2", "qwen3"])
def test_the_same_as_from_the_file(name: str) -> None:
    checkpoint = load(FIXTURES / name, dtype="float32")
    tensors = {
        name: tensor.astype(np.float32) for name, tensor in load_file(FIXTURES / name / "model.safetensors").items()
    }
    for build in (params_from_hf, jax.jit(params_from_hf, static_argnums=1)):
        jax.tree.map(np.testing.assert_array_equal, build(tensors, checkpoint.config), checkpoint.params)


def test_what_does_not_fit_is_named() -> None:
    config = load(FIXTURES / "qwen3", dtype="float32").config
    good = load_file(FIXTURES / "qwen3" / "model.safetensors")
    up, gate = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.gate_proj.weight"
    for wrong, words in (
        ({up: None}, f"{up}: found shape None, expected "),
        ({up: good[up].T}, r"give its transpose"),
        ({up: good[up].astype(jnp.bfloat16)}, rf"types differ: {gate} float32, {up} bfloat16: cast them to one"),
        ({"score.weight": good[up]}, r"score.weight is unexpected: Qwen3ForCausalLM with this configuration has none"),
    ):
        with pytest.raises(ParamsMismatch, match=words):
            params_from_hf(good | wrong, config)
    with pytest.raises(ParamsMismatch, match=f"{up} is missing: expected an array of shape "):
        params_from_hf({name: tensor for name, tensor in good.items() if name != up}, config)
