"""Products with weights that are held in different ways."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.models import layers
from jaxserve.models.contract import QuantArray, contract, merge_axes, quantize, take_rows

rng = np.random.default_rng(0)
SPECS = {
    "td,dkgh->tkgh": ((5, 8), (8, 2, 3, 4), (0,)),
    "ti,id->td": ((5, 12), (12, 8), (0,)),
    "rd,vd->rv": ((5, 8), (10, 8), (1,)),
    "tef,efd->ted": ((5, 3, 4), (3, 4, 8), (1,)),
    "td,kd->kt": ((5, 8), (2, 8), (1,)),
}


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "float8_e5m2"])
def test_a_quantized_weight_is_multiplied_as_its_dequantized_array(spec: str, dtype: str) -> None:
    inputs, weights, summed = SPECS[spec]
    x, w = normal(*inputs), quantize(normal(*weights), summed, jnp.dtype(dtype))
    np.testing.assert_allclose(contract(spec, x, w), jnp.einsum(spec, x, w.dequantized()), rtol=1e-5, atol=1e-5)


def test_rounding_is_within_half_a_step_and_spares_zeros() -> None:
    w = normal(16, 6).at[:, 2].set(0.0)
    held = quantize(w, (0,))
    assert held.values.dtype == jnp.int8 and held.scales.shape == (1, 6) and held.shape == w.shape
    assert (jnp.abs(held.dequantized() - w) <= held.scales * 0.5001).all()
    assert not held.dequantized()[:, 2].any()
    assert jnp.abs(held.values).max(axis=0).tolist() == [127, 127, 0, 127, 127, 127]


def test_activations_and_sums_have_the_types_that_arrays_give_them() -> None:
    x, w = normal(5, 8).astype(jnp.bfloat16), normal(8, 6).astype(jnp.bfloat16)
    held = quantize(w, (0,))
    assert held.dtype == held.dequantized().dtype == contract("td,df->tf", x, held).dtype == jnp.bfloat16
    assert contract("td,df->tf", x, held, jnp.float32).dtype == contract("td,df->tf", x, w, jnp.float32).dtype


def test_layers_take_either() -> None:
    def both(run: Callable[..., jax.Array], w: jax.Array, *summed: int) -> None:
        held = quantize(w, summed)
        np.testing.assert_allclose(run(held), run(held.dequantized()), rtol=1e-5, atol=1e-5)

    heads, x, ids = normal(5, 6, 4), normal(5, 8), np.array([0, 3, 99], np.int32)
    both(lambda w: layers.attention_output(heads, w), normal(2, 3, 4, 8), 0, 1, 2)
    both(lambda w: layers.unembed_tied(x, w), normal(10, 8), 1)
    both(lambda w: layers.embed(w, ids), normal(10, 8), 1)
    both(lambda w: take_rows(w, ids), normal(10, 8), 0)
    both(lambda w: contract("ti,id->td", heads.reshape(5, 24), merge_axes(w, 3)), normal(2, 3, 4, 8), 0, 1, 2)


def test_scales_must_not_vary_over_what_is_summed() -> None:
    wrong = quantize(normal(8, 6), (1,))
    with pytest.raises(ValueError, match="squeeze"):
        contract("td,df->tf", normal(5, 8), wrong)


def test_it_is_a_pytree_that_can_be_traced() -> None:
    x, w = normal(5, 8), quantize(normal(8, 6), (0,))
    run = jax.jit(lambda x, w: contract("td,df->tf", x, w))
    np.testing.assert_allclose(run(x, w), contract("td,df->tf", x, w), rtol=1e-6)
    assert isinstance(jax.tree.map(jnp.asarray, w), QuantArray) and len(jax.tree.leaves(w)) == 2
