"""How ragged rows of queries are cut into tiles, on the device.

    q      | row 0: 5 |    row 1: 70 queries     | row 2: 12 |  padding   |
    tiles    [0 .. 64)
             [0          .. 64)[64        .. 128)
                                         [72        .. 136)
                                                       [80        .. 144)

A tile begins at a multiple of 8, for that is how queries are copied, so its first queries may belong to the row before,
and its last ones to the row after: they are computed and not stored. The padding after the last row is a row without
context: its tiles store zeros, so that nothing downstream meets a NaN.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

ALIGNED = 8


class QueryTiles(NamedTuple):
    """One entry a tile; tiles that are not needed store nothing: begin = end."""

    row: jax.Array  # of the block tables
    start: jax.Array  # the tile's first query, a multiple of 8
    begin: jax.Array  # the row's queries in the tile: [begin, end)
    end: jax.Array
    position: jax.Array  # in its row, of the tile's first query; below 0 if that is not the row's
    context: jax.Array  # tokens of the row up to this chunk's end; 0 for padding


def tiles_at_most(tokens: int, rows: int, size: int) -> int:
    """Each of the rows, and the padding, adds at most one tile and a beginning that is not aligned."""
    return min((tokens + ALIGNED * (rows + 1)) // size + rows + 1, tokens + 1)


def cut(query_offsets: jax.Array, context_lengths: jax.Array, tokens: int, size: int) -> QueryTiles:
    """The tiles of `tokens` queries, `size` in each."""
    rows = context_lengths.shape[0]
    i32 = jnp.int32
    offsets = jnp.concatenate([query_offsets, jnp.full((1,), tokens, i32)])  # [R + 2]
    first, last = offsets[:-1], offsets[1:]
    aligned = first // ALIGNED * ALIGNED
    counts = jnp.where(last > first, (last - aligned + size - 1) // size, 0)  # [R + 1]
    ends = jnp.cumsum(counts, dtype=i32)
    index = jnp.arange(tiles_at_most(tokens, rows, size), dtype=i32)
    row = jnp.sum(index[:, None] >= ends[None, :], axis=1, dtype=i32)  # R + 1 beyond the last tile
    needed = row <= rows
    row = jnp.minimum(row, rows)
    start = jnp.where(needed, aligned[row] + (index - ends[row] + counts[row]) * size, 0)
    begin = jnp.where(needed, jnp.maximum(first[row], start), 0)
    end = jnp.where(needed, jnp.minimum(last[row], start + size), 0)
    context = jnp.concatenate([context_lengths, jnp.zeros((1,), i32)])[row]
    position = context - (last - first)[row] + start - first[row]
    return QueryTiles(jnp.minimum(row, rows - 1), start, begin, end, position, context)
