"""In which type products are taken."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl


def compute_dtype(q_dtype: jnp.dtype, kv_dtype: jnp.dtype) -> jnp.dtype:
    """Of both operands of `wgmma`: every e4m3 number is a float16, every int8 is a float16 and a bfloat16."""
    return jnp.dtype(jnp.float16) if kv_dtype == jnp.float8_e4m3fn else jnp.dtype(q_dtype)


def positive_scale(q: jax.Array, scale: float) -> tuple[jax.Array, float]:
    """The same scores from a scale above 0: the softmax takes its maximum before it scales."""
    if scale > 0:
        return q, scale
    return (-q, -scale) if scale < 0 else (jnp.zeros_like(q), 1.0)


def widen(narrow: Any, wide: Any, factors: jax.Array | None = None, columns: int | None = None) -> None:
    """Write the numbers of `narrow` [C, H] to `wide` [C, H], both in shared memory, times `factors` [C] if given.

    Few columns at a time, in a loop, or the registers would not suffice; 64 rows, or no layout is found for them.
    """
    width = narrow.shape[1]
    step = columns or (64 if width % 64 == 0 else 32)

    @pl.loop(0, width // step)
    def _(i):
        part = slice(None), pl.ds(pl.multiple_of(i * step, step), step)
        numbers = narrow[part]
        if factors is not None:
            numbers = numbers.astype(jnp.float32) * lax.broadcast_in_dim(factors, numbers.shape, [0])
        wide[part] = numbers.astype(wide.dtype)
