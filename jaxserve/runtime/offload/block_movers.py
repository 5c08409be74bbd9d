"""The programs that take KV blocks out of the cache, and put them back.

A block is one array [2 L, K, S, H], all layers together: keys and values of the first layer, of the second, and so on.
Where the cache is of 8 bits it is the bytes of numbers and scales together, [2 L, K, S H + 4].
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxserve.parallel.placement import Placement, abstract
from jaxserve.runtime.kv_cache import KVCache
from kernels_pallas.pages import Pages

GROUPS = (16, 4, 1)
"""Blocks that one program gathers or scatters."""


def mover_keys() -> list[tuple[str, int]]:
    """(name, blocks) of every program."""
    return [(name, size) for name in ("gather", "scatter") for size in GROUPS]


def lower_mover(cache: Any, name: str, blocks: int, placement: Placement) -> jax.stages.Lowered:
    """One of the programs, from the cache's shapes."""
    ids = jax.ShapeDtypeStruct((blocks,), jnp.int32, sharding=placement.step_input)
    if name == "gather":
        return jax.jit(gather_blocks).lower(cache, ids)
    block = block_of(cache)
    contents = (abstract(block, placement.step_blocks),) * blocks
    return jax.jit(scatter_blocks, donate_argnums=0).lower(cache, ids, contents)


def gather_blocks(cache: KVCache, blocks: jax.Array) -> tuple[jax.Array, ...]:  # [n] -> n x [2 L, K, S, H]
    pages = jnp.stack([_content(*part, blocks) for layer in cache for part in _parts(layer)], axis=1)
    return tuple(pages[i] for i in range(blocks.shape[0]))


def scatter_blocks(cache: KVCache, blocks: jax.Array, contents: tuple[jax.Array, ...]) -> KVCache:
    """The cache with block i replaced by its content: [n], n x [2 L, K, S, H]."""
    stacked = jnp.stack(contents, axis=1)  # [2 L, n, K, S, H]
    found = list(cache)
    for i, layer in enumerate(cache):
        (keys, key_scales), (values, value_scales) = (
            _put(*part, blocks, stacked[2 * i + j]) for j, part in enumerate(_parts(layer))
        )
        found[i] = Pages(keys, values, key_scales, value_scales)
    return tuple(found)


def _parts(layer: Pages) -> tuple[tuple[jax.Array, jax.Array | None], ...]:
    return (layer.keys, layer.key_scales), (layer.values, layer.value_scales)


def _content(pages: jax.Array, scales: jax.Array | None, blocks: jax.Array) -> jax.Array:
    """[n, K, S, H], or, with scales, the bytes of both: [n, K, S H + 4]"""
    if scales is None:
        return pages[blocks]
    taken = lax.bitcast_convert_type(pages, jnp.uint8)[blocks]
    return jnp.concatenate(
        [taken.reshape(*taken.shape[:2], -1), lax.bitcast_convert_type(scales[blocks], jnp.uint8)], axis=-1
    )


def _put(
    pages: jax.Array, scales: jax.Array | None, blocks: jax.Array, content: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """What `_content` took, back into its blocks."""
    mode = "promise_in_bounds"
    if scales is None:
        return pages.at[blocks].set(content, mode=mode), None
    numbers = content[..., :-4].reshape(content.shape[0], *pages.shape[1:])
    as_bytes = lax.bitcast_convert_type(pages, jnp.uint8).at[blocks].set(numbers, mode=mode)
    scale = lax.bitcast_convert_type(content[..., -4:], jnp.float32)
    return lax.bitcast_convert_type(as_bytes, pages.dtype), scales.at[blocks].set(scale, mode=mode)


def block_of(cache: Any) -> jax.ShapeDtypeStruct:
    keys, scales = cache[0].keys, cache[0].key_scales
    if scales is None:
        return jax.ShapeDtypeStruct((2 * len(cache), *keys.shape[1:]), keys.dtype)
    _, heads, size, head_dim = keys.shape
    return jax.ShapeDtypeStruct((2 * len(cache), heads, size * head_dim + 4), jnp.uint8)


def groups(count: int) -> Iterator[int]:
    """Sizes of programs that make up `count` blocks exactly: no padding, few calls."""
    for size in GROUPS:
        while count >= size:
            yield size
            count -= size
