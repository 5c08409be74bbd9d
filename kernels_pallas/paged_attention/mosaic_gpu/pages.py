"""Pages on their way into shared memory: which pages a tile of tokens is, their copies, their scales.

A tile is one page or several small ones, side by side in a slot of a ring:

    table of the row     [ 7 | 3 | 9 | 4 | 1 | 8 | 0 | 0 ]     pages of 16 tokens
    tiles of 64 tokens     `---- 0 ----´  `---- 1 ----´
    slot of the ring     [ page 7 | page 3 | page 9 | page 4 ]  one TMA copy each, one barrier for all

Where a tile sticks out of the row (before its window, behind its end), the nearest page that the row sees is copied
again: it is in the L2 cache, and its scores are masked. Slots behind the row's end hold what others left there, NaN
perhaps, and 0 x NaN is NaN: in the row's last tile their values are cleared (`clear`). If the row sees that page alone,
the copies before it hold its end as well, and are cleared too (`Row.begin_in`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas.paged_attention.mosaic_gpu import softmax
from kernels_pallas.paged_attention.mosaic_gpu.operations import M, Operations


class Row(NamedTuple):
    """What a program can see of a row, in units of a page, or of a tile where pages are larger."""

    table: Any  # [R, W] in global memory
    row: jax.Array
    first_unit: jax.Array
    last_unit: jax.Array
    unit: int
    """Tokens."""
    units: int
    """Of a tile."""
    page_size: int

    @property
    def first_tile(self) -> jax.Array:
        return lax.div(self.first_unit, jnp.int32(self.units))

    @property
    def last_tile(self) -> jax.Array:
        return lax.div(self.last_unit, jnp.int32(self.units))

    def ids(self, tile: jax.Array) -> tuple[jax.Array, ...]:
        """Page ids of a tile's units; also of tiles out of range, so that they can be read ahead."""
        return tuple(self.table[self.row, lax.div(at * self.unit, jnp.int32(self.page_size))] for at in self._at(tile))

    def copy(
        self, pages: Any, head: jax.Array, tile: jax.Array, ids: tuple[jax.Array, ...], slot: Any, ready: Any
    ) -> None:
        """Start the copies of a tile of one head; each arrives once at `ready`."""
        for j, (at, page) in enumerate(zip(self._at(tile), ids, strict=True)):
            source = pages.at[page, head]
            if self.unit < self.page_size:
                inside = lax.rem(at * self.unit, jnp.int32(self.page_size))
                source = source.at[pl.ds(pl.multiple_of(inside, self.unit), self.unit)]
            plgpu.copy_gmem_to_smem(source, slot.at[pl.ds(j * self.unit, self.unit)], ready)

    def begin_in(self, tile: jax.Array, windowed: bool) -> jax.Array | None:
        """The first row of a tile that is no copy of a later page; None: there can be no copies before it."""
        return self.first_unit * self.unit - tile * (self.units * self.unit) if windowed and self.units > 1 else None

    def _at(self, tile: jax.Array) -> list[jax.Array]:
        return [jnp.clip(tile * self.units + j, self.first_unit, self.last_unit) for j in range(self.units)]


def visible_row(table: Any, row: jax.Array, begin: jax.Array, end: jax.Array, page_size: int, tile_tokens: int) -> Row:
    """The row's tokens [begin, end)."""
    unit = min(page_size, tile_tokens)
    first, last = (lax.div(at, jnp.int32(unit)) for at in (begin, jnp.maximum(end - 1, 0)))
    return Row(table, row, first, last, unit, tile_tokens // unit, page_size)


def scaled(
    ops: Operations,
    x: jax.Array,  # [M, C] float32
    scales: Any | None,  # [P, K] float32
    ids: tuple[jax.Array, ...],
    head: jax.Array,
) -> jax.Array:
    """x, each page's columns times the page's scale."""
    if scales is None:
        return x
    factors = [scales[page, head] for page in ids]
    if len(factors) == 1:
        return x * factors[0]
    width = x.shape[1]
    part = lax.div(ops.column_index(width), jnp.int32(width // len(ids)))
    columns = lax.broadcast_in_dim(factors[0], (width,), [])
    for j, factor in enumerate(factors[1:], 1):
        columns = jnp.where(part == j, factor, columns)
    return x * softmax.over_columns(columns)


def row_factors(ops: Operations, scales: Any, ids: tuple[jax.Array, ...], head: jax.Array) -> jax.Array:  # [M] float32
    """The scale of each token of a tile of M tokens, one a row."""
    part = lax.div(ops.row_index(), jnp.int32(M // len(ids)))
    factors = ops.rows(0.0)
    for j, page in enumerate(ids):
        factors = jnp.where(part == j, scales[page, head], factors)
    return factors


def clear(ops: Operations, values: Any, end: jax.Array, begin: jax.Array | None = None, keep: int = 0) -> None:
    """Zeros in a tile of values [C, H] in shared memory, from row `end` on, and before row `begin`.

    The first `keep` rows are not values and stay as they are. Few columns at a time, in a loop, as in `widths.widen`.
    The caller commits before a product reads the tile.
    """
    tokens, width = values.shape
    step = 64 if width % 64 == 0 else 32

    for top in range(0, tokens, M):

        @pl.loop(0, width // step)
        def _(i, top=top):
            part = pl.ds(top, M), pl.ds(pl.multiple_of(i * step, step), step)
            numbers = values[part]
            row = ops.row_index() + top
            held = row < end
            if begin is not None:
                held &= (row >= begin) | (row < keep)
            held = lax.broadcast_in_dim(held, numbers.shape, [0])
            values[part] = jnp.where(held, numbers, jnp.zeros_like(numbers))
