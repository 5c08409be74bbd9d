"""Parameter pytrees: random ones, and the check of a user's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.core.errors import ParamsMismatch
from jaxserve.models import ModelConfig, check_params, model_for, random_params

CONFIG = ModelConfig(
    architecture="Qwen3ForCausalLM", vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=8, max_position_embeddings=32, qkv_bias=True, output_bias=True, qk_norm=True,
)  # fmt: skip


@pytest.fixture
def params():
    return random_params(CONFIG, seed=0, dtype=jnp.float32)


def test_random_params_fit_and_follow_the_seed(params):
    check_params(params, CONFIG)
    again, other = random_params(CONFIG, 0, jnp.float32), random_params(CONFIG, 1, jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert not np.array_equal(params["embed"], other["embed"])
    assert not np.array_equal(params["layers"][0]["wo"], params["layers"][1]["wo"])
    for name, fan_in in (("wqkv", 32), ("wo", 32), ("w_gate_up", 32), ("w_down", 48)):
        assert float(params["layers"][0][name].std()) == pytest.approx(fan_in**-0.5, rel=0.2)


def test_check_params_takes_numpy_and_abstract_arrays(params):
    check_params(jax.tree.map(np.asarray, params), CONFIG)
    check_params(model_for(CONFIG).abstract_params(CONFIG, jnp.bfloat16), CONFIG)


def _set(path, value):
    def change(params):
        *parents, last = path
        node = params
        for key in parents:
            node = node[key]
        if value is None:
            del node[last]
        else:
            node[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (_set(("layers", 1, "wo"), None), "['layers'][1]['wo'] is missing: expected an array of shape (2, 2, 8, 32)"),
        (_set(("layers", 1), None), "['layers'][1]['attn_norm'] is missing"),
        (_set(("extra",), np.ones(3, np.float32)), "['extra'] is unexpected"),
        (
            _set(("embed",), np.ones((64, 16), np.float32)),
            "['embed']: found shape (64, 16), expected an array of shape",
        ),
        (_set(("norm",), np.ones(32, np.int32)), "['norm']: found int32, expected one floating-point type"),
        (_set(("norm",), jnp.ones(32, jnp.bfloat16)), "['norm']: found bfloat16, expected one floating-point type for"),
        (
            lambda params: params.update(jax.tree.map(lambda leaf: leaf.astype("float8_e4m3fn"), params)),
            "['embed']: found float8_e4m3fn, expected one of float32, bfloat16, float16",
        ),
        (
            lambda params: params.update(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)),
            "['embed']: found float64, expected one of float32",
        ),
        (_set(("norm",), 1.0), "['norm']: found a float, expected an array of shape (32,)"),
    ],
    ids=[
        "missing leaf",
        "missing layer",
        "extra leaf",
        "shape",
        "whole numbers",
        "mixed types",
        "8 bits",
        "64 bits",
        "no array",
    ],
)  # fmt: skip
def test_a_pytree_that_does_not_fit_is_refused_by_leaf(params, change, found):
    change(params)
    with pytest.raises(ParamsMismatch) as caught:
        check_params(params, CONFIG)
    assert f"params{found}" in str(caught.value)


def test_what_is_no_pytree_of_arrays_is_refused():
    for nothing in (None, {}, [], {"params": {}}):
        with pytest.raises(ParamsMismatch, match=r"\['embed'\] is missing"):
            check_params(nothing, CONFIG)
