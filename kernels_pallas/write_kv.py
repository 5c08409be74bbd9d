"""New keys and values into their pages, in place where the pages are donated.

XLA's scatter updates a donated buffer without a copy (float32 and int8 on every version; bfloat16 on the CPU from JAX
0.11; float8 on a GPU, not on the CPU).

Pages of 8 bits have a scale a page and head, and a page fills over many steps: a later key may be larger than the scale
lets it be. Other engines avoid the question with one scale a tensor, calibrated or 1 (vLLM, TensorRT-LLM, SGLang), and
clip, or with a scale for every token (vLLM's `_per_token_head`). Here the scale grows, and what the page holds is
brought to the new one. Scales are powers of two, which makes that harmless however often it happens:

    float8_e4m3fn    dividing by a power of two is exact, but for subnormals: a page holds the same numbers whether its
                     tokens came one at a time or all at once
    int8             each growth rounds once more, half of a quantum that is itself half of the next: together less than
                     one quantum of the last scale

A page whose offset 0 is written begins anew: the scale of the sequence that had it before is forgotten.

Values in pages are always finite. Where a key or a value is not, the value is 0 and the key NaN: the scores of just
those queries that see the token are NaN then. A NaN among the values would reach queries before it too, since a product
multiplies it by their weight of 0, and with them the beginning of a prompt that others share. int8 has no NaN: there
the scale of the page's keys becomes NaN.
"""

import jax
import jax.numpy as jnp
from jax import lax

from kernels_pallas.pages import Pages

LARGEST = {"float8_e4m3fn": 448.0, "int8": 127.0}
"""The largest number of a page's type."""
SCALES = 2.0**-60, 2.0**60
"""Smallest and largest scale: a token of zeros has one too."""
_IN_BOUNDS = "promise_in_bounds"


def write(
    pages: Pages,
    k: jax.Array,  # [T, K, H]
    v: jax.Array,  # [T, K, H]
    slots: jax.Array,  # [T] int32
    firsts: jax.Array | None = None,  # [R] int32
) -> Pages:
    """The pages with token t's key and value at slot `slots[t]` = page * S + offset.

    Padding tokens get a slot of page 0, the scratch page; which of them stays there does not matter.

    Args:
      firsts: for pages of 8 bits, and ignored for others: the index in `k` of each row's first token of this call. Only
        its page can hold earlier tokens of the row, because a row's other pages begin with this call. Repeated and
        unneeded indices do no harm.

    Raises:
      ValueError: the pages are of 8 bits and `firsts` is missing.
    """
    with jax.named_scope("write_kv"):
        if pages.key_scales is None or pages.value_scales is None:
            page, offset = slots // pages.keys.shape[2], slots % pages.keys.shape[2]
            k, v = _marked(k.astype(pages.keys.dtype), v.astype(pages.values.dtype))
            keys, values = (
                half.at[page, :, offset].set(new, mode=_IN_BOUNDS) for half, new in ((pages.keys, k), (pages.values, v))
            )
            return Pages(keys, values)
        if firsts is None:
            raise ValueError(f"firsts is missing: pages of {pages.keys.dtype} need the index of each row's first token")
        # Not before the layer's keys are there: XLA would fetch pages of many layers at once, and hold them all
        # (751 MiB of temporaries in an 8B step of 256 rows for an H200).
        firsts, _ = lax.optimization_barrier((firsts, k))
        k, v = _marked(k, v)
        keys, key_scales = _write_quantised(pages.keys, pages.key_scales, k, slots, firsts)
        values, value_scales = _write_quantised(pages.values, pages.value_scales, v, slots, firsts)
        return Pages(keys, values, key_scales, value_scales)


def _marked(k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values as pages hold them: values finite, keys NaN where one of the two was not."""
    finite = jnp.isfinite(v)
    return jnp.where(jnp.isfinite(k) & finite, k, jnp.nan), jnp.where(finite, v, 0.0)


def _write_quantised(
    pages: jax.Array,  # [P, K, S, H] float8_e4m3fn or int8
    scales: jax.Array,  # [P, K] float32
    x: jax.Array,  # [T, K, H] keys or values
    slots: jax.Array,  # [T] int32
    firsts: jax.Array,  # [R] int32
) -> tuple[jax.Array, jax.Array]:
    """Pages and scales with token t at slot `slots[t]`: number x scale is the nearest there is to x."""
    size, largest = pages.shape[2], LARGEST[pages.dtype.name]
    page, offset = slots // size, slots % size
    x = x.astype(jnp.float32)
    needed = _power_at_least(jnp.max(jnp.abs(jnp.nan_to_num(x)), axis=-1) / largest)  # [T, K]
    if pages.dtype == jnp.int8:  # float8 has a NaN of its own
        needed = jnp.where(jnp.any(jnp.isnan(x), axis=-1), jnp.nan, needed)
    before = scales.at[jnp.where(offset == 0, page, scales.shape[0])].set(0.0, mode="drop")
    after = _largest_at(before, page, needed)
    pages = _brought_to(pages, before, after, page[firsts])
    scaled = jnp.clip(x / after[page][..., None], -largest, largest)
    return _set(pages, (page, slice(None), offset), _rounded(scaled, pages.dtype), _IN_BOUNDS), after


def _brought_to(pages: jax.Array, before: jax.Array, after: jax.Array, page: jax.Array) -> jax.Array:  # page [R]
    """What pages whose scale has grown hold, in the new one; the others are not written."""
    old, new = before[page], after[page]  # [R, K]
    grown = (old > 0) & (new > old)
    # The barrier keeps XLA from reading the pages inside the kernel that writes them, for which it copies them all.
    held = lax.optimization_barrier(pages[page]).astype(jnp.float32)  # [R, K, S, H]
    held = held * (old / new)[..., None, None]
    heads = jnp.arange(pages.shape[1], dtype=jnp.int32)[None]
    where = jnp.where(grown, page[:, None], pages.shape[0]), heads
    return _set(pages, where, _rounded(held, pages.dtype), "drop")


def _set(pages: jax.Array, where: tuple, to: jax.Array, mode: str) -> jax.Array:
    """Scattered as bytes, in place on a GPU. XLA's CPU compiler copies float8 pages even so; as float8 it would widen
    them to float32 first (1 GiB of temporaries for pages of 256 MiB). int8 is in place there too."""
    as_bytes = [lax.bitcast_convert_type(array, jnp.int8) for array in (pages, to)]
    return lax.bitcast_convert_type(as_bytes[0].at[where].set(as_bytes[1], mode=mode), pages.dtype)


def _rounded(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return (jnp.rint(x) if dtype == jnp.int8 else x).astype(dtype)


def _power_at_least(x: jax.Array) -> jax.Array:
    """The power of two at or above a positive number, from its bits: exact, where a logarithm would not be."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    power = lax.bitcast_convert_type(((bits + 0x7FFFFF) >> 23) << 23, jnp.float32)
    return jnp.clip(power, *SCALES)


def _largest_at(scales: jax.Array, page: jax.Array, needed: jax.Array) -> jax.Array:  # [P, K], [T], [T, K]
    """Positive floats are ordered as their bits, and a GPU has an atomic maximum of integers only."""
    bits, new = (lax.bitcast_convert_type(array, jnp.int32) for array in (scales, needed))
    return lax.bitcast_convert_type(bits.at[page].max(new, mode=_IN_BOUNDS), jnp.float32)
