"""Every product with a weight: `contract(spec, x, w)`. Layers do not know how a weight is held.

A weight is an array, or a `QuantArray`: 8-bit numbers with one scale for each output channel. Another kind of weight is
added here and nowhere else. No setting and no checkpoint format makes a `QuantArray` yet, and the engine compiles its
programs for arrays: a `QuantArray` works where the caller gives the pytree to `Decoder`'s methods.
"""

from dataclasses import dataclass, field
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, eq=False)
class QuantArray:
    """Stands for the array `values * scales` of type `dtype`. It is symmetric: there is no zero point."""

    values: jax.Array
    """int8, or an 8-bit float."""
    scales: jax.Array
    """float32. Each axis has the size that it has in `values`, or size 1, as every axis that a product sums over."""
    dtype: Any = field(metadata={"static": True})
    """The type of the activations that it is multiplied with."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def dequantized(self) -> jax.Array:
        return (self.values.astype(jnp.float32) * self.scales).astype(self.dtype)


Weight = jax.Array | QuantArray


def quantize(
    w,
    summed: tuple[int, ...],
    dtype: Any = jnp.int8,
) -> QuantArray:
    """Round `w` to an 8-bit type, with one scale for all elements that differ only in the axes `summed`.

    `dtype` is int8 or one of JAX's 8-bit floats. The largest element of each channel becomes the type's largest number.
    """
    limit = float(jnp.iinfo(dtype).max if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo(dtype).max)
    exact = w.astype(jnp.float32)
    largest = jnp.max(jnp.abs(exact), axis=summed, keepdims=True)
    scales = jnp.where(largest > 0, largest / limit, 1.0)
    scaled = jnp.clip(exact / scales, -limit, limit)
    values = jnp.round(scaled) if jnp.issubdtype(dtype, jnp.integer) else scaled
    return QuantArray(values.astype(dtype), scales, np.dtype(w.dtype))


def contract(
    spec: str,
    x: jax.Array,
    w: Weight,
    dtype: Any = None,
) -> jax.Array:
    """`einsum(spec, x, w)`, where `spec` names every axis of x, w and the result: "td,df->tf".

    `dtype` is the type that sums are kept and returned in; by default it is left to JAX, and is that of `x`.
    """
    if not isinstance(w, QuantArray):
        return jnp.einsum(spec, x, w, preferred_element_type=dtype)
    names, out = spec.split(",")[1].split("->")
    product = jnp.einsum(spec, x, w.values.astype(x.dtype), preferred_element_type=jnp.float32)
    scales = jnp.squeeze(w.scales, tuple(i for i, name in enumerate(names) if name not in out))
    kept = [name for name in names if name in out]
    scales = jnp.transpose(scales, [kept.index(name) for name in out if name in kept])
    scales = jnp.expand_dims(scales, tuple(i for i, name in enumerate(out) if name not in kept))
    return (product * scales).astype(dtype or x.dtype)


def merge_axes(w: Weight, count: int) -> Weight:
    """The weight with its first `count` axes as one. A product must sum over all of them, or over none."""
    if isinstance(w, QuantArray):
        return QuantArray(_merged(w.values, count), _merged(w.scales, count), w.dtype)
    return _merged(w, count)


def take_rows(w: Weight, ids: jax.Array) -> jax.Array:
    """Rows of a table [V, D], [..., D]. Ids out of range are clamped."""
    if isinstance(w, QuantArray):
        return QuantArray(take_rows(w.values, ids), take_rows(w.scales, ids), w.dtype).dequantized()
    return jnp.take(w, ids, axis=0, mode="clip")


def _merged(array: jax.Array, count: int) -> jax.Array:
    return array.reshape(prod(array.shape[:count]), *array.shape[count:])
