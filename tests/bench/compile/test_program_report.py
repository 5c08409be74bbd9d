"""A copy of the cache is found in an optimized module, and only a copy."""

import jax
import jax.numpy as jnp
import pytest

from bench.compile.program_report import copies_of, report

CACHE = (61, 2, 8, 16)


def compiled(function, *, donate: bool) -> jax.stages.Compiled:
    cache = jax.ShapeDtypeStruct(CACHE, jnp.float32)
    new = jax.ShapeDtypeStruct((3, 2, 16), jnp.float32)
    return jax.jit(function, donate_argnums=(0,) if donate else ()).lower(cache, new).compile()


def write(cache: jax.Array, new: jax.Array) -> jax.Array:
    return cache.at[jnp.arange(3), :, 0].set(new)


def test_a_donated_cache_is_not_copied() -> None:
    found = report("step", compiled(write, donate=True), CACHE)
    assert found.cache_copies == ()
    assert found.aliased == 61 * 2 * 8 * 16 * 4 and found.outputs == 0


@pytest.mark.parametrize(
    ("function", "donate", "opcode"),
    [
        (write, False, "copy"),
        (lambda cache, new: write(cache * 2.0, new), True, "multiply"),
        (lambda cache, new: (write(cache, new), cache.transpose(0, 2, 1, 3) + 0.0), True, "transpose|add|copy"),
    ],
)
def test_a_copy_is_found(function, donate: bool, opcode: str) -> None:
    import re

    assert any(re.search(opcode, found) for found in copies_of(CACHE, compiled(function, donate=donate).as_text()))


def test_other_arrays_of_other_sizes_do_not_count() -> None:
    program = compiled(lambda cache, new: (write(cache, new), jnp.exp(new)), donate=True)
    assert copies_of(CACHE, program.as_text()) == []
    assert copies_of((3, 2, 16), program.as_text())
