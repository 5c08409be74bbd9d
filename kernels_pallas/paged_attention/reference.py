"""Paged attention in plain XLA: the oracle of the kernels, and what the CPU runs.

Work follows real lengths, not the table's width: blocks of rows (decode) or tiles of queries (prefill) are taken in
turn, and for each the pages that it can see, in a loop whose trip count is known at run time. The softmax is taken
online, in float32: a running maximum `m`, a running sum, and an accumulator that is rescaled when the maximum grows.

    m' = max(m, max s)    sum' = sum e^(m-m') + sum_s e^(s-m')    acc' = acc e^(m-m') + e^(s-m') V

What was measured (64 rows of 184 tokens, 2 query heads on each of 4 KV heads x 64, float32, 2 cores of an EPYC with
AVX2, JAX 0.11.2, processor time of one call): small products of one row and page at a time 5.0 ms, on one core;
multiply-and-add over 16 rows at once 6.9 ms, which XLA spreads over the cores. Gathering whole tables first: over 35.
Sorting the rows by length makes the rows of a block end together: without it 9.6.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernels_pallas.paged_attention.options import Options, Problem

MASKED = -1e30
"""Finite, so that a page without a visible token is harmless: 0 x NaN would not be."""
QUERY_TILE = 32
ROW_BLOCK = 16
PAGES_AT_ONCE = 2

State = tuple[jax.Array, jax.Array, jax.Array]  # m, sum [R, K, M] and acc [R, K, M, H], float32


class _Pages(NamedTuple):
    """The cache: pages, and, where they are quantised, their scales."""

    k: jax.Array  # [P, K, S, H]
    v: jax.Array  # [P, K, S, H]
    k_scales: jax.Array | None  # [P, K]
    v_scales: jax.Array | None  # [P, K]


def limit(problem: Problem) -> str | None:
    """None: the reference computes everything."""
    return None


def decode(
    q: jax.Array,  # [B, N, H]
    k_pages: jax.Array,  # [P, K, S, H]
    v_pages: jax.Array,  # [P, K, S, H]
    block_tables: jax.Array,  # [B, W]
    lengths: jax.Array,  # [B]
    sinks: jax.Array | None,  # [N]
    k_scales: jax.Array | None,  # [P, K] float32
    v_scales: jax.Array | None,  # [P, K] float32
    options: Options,
) -> jax.Array:  # [B, N, H]
    rows, heads, head_dim = q.shape
    kv_heads, size = k_pages.shape[1:3]
    group = heads // kv_heads
    block = ROW_BLOCK if rows % ROW_BLOCK == 0 else rows
    start = _start(sinks, block, kv_heads, group, 1, head_dim)
    cache = _Pages(k_pages, v_pages, k_scales, v_scales)

    def one_block(given: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        query, tables, length = given
        positions = jnp.broadcast_to((length - 1)[:, None], (block, group))
        scaled = query.reshape(block, kv_heads, group, head_dim).astype(jnp.float32) * options.scale
        visit = _visit(scaled, cache, tables, positions, options)
        first = _first_page(jnp.min(length) - 1, size, options) // PAGES_AT_ONCE
        last = _pages(jnp.max(length), size * PAGES_AT_ONCE)
        return _finish(lax.fori_loop(first, last, visit, start)).reshape(block, heads, head_dim).astype(q.dtype)

    order = jnp.argsort(lengths) if rows > block else jnp.arange(rows)
    given = q[order], _even(block_tables)[order], lengths[order]
    blocks = jax.tree.map(lambda x: x.reshape(rows // block, block, *x.shape[1:]), given)
    return jnp.zeros_like(q).at[order].set(lax.map(one_block, blocks).reshape(q.shape))


def prefill(
    q: jax.Array,  # [T, N, H]
    k_pages: jax.Array,  # [P, K, S, H]
    v_pages: jax.Array,  # [P, K, S, H]
    block_tables: jax.Array,  # [R, W]
    query_offsets: jax.Array,  # [R + 1]
    context_lengths: jax.Array,  # [R]
    sinks: jax.Array | None,  # [N]
    k_scales: jax.Array | None,  # [P, K] float32
    v_scales: jax.Array | None,  # [P, K] float32
    options: Options,
) -> jax.Array:  # [T, N, H]
    """Each row's queries are cut into tiles; a tile's tail may reach into the next row, which then overwrites it."""
    tokens, heads, head_dim = q.shape
    kv_heads, size = k_pages.shape[1:3]
    group, tile = heads // kv_heads, min(QUERY_TILE, tokens)
    chunks = query_offsets[1:] - query_offsets[:-1]
    last_tiles = jnp.cumsum((chunks + tile - 1) // tile, dtype=jnp.int32)  # [R] tiles up to and with the row
    padded = jnp.pad(q, ((0, tile), (0, 0), (0, 0)))
    start = _start(sinks, 1, kv_heads, group, tile, head_dim)
    tables, cache = _even(block_tables), _Pages(k_pages, v_pages, k_scales, v_scales)

    def one_tile(i: jax.Array, out: jax.Array) -> jax.Array:
        row = jnp.sum(i >= last_tiles, dtype=jnp.int32)
        inside = (i - jnp.where(row > 0, last_tiles[row - 1], 0)) * tile  # queries of the row before this tile
        begin = query_offsets[row] + inside
        first_position = context_lengths[row] - chunks[row] + inside
        query = lax.dynamic_slice_in_dim(padded, begin, tile).reshape(tile, kv_heads, group, head_dim)
        query = query.transpose(1, 2, 0, 3).reshape(1, kv_heads, group * tile, head_dim)
        position = first_position + jnp.arange(tile, dtype=jnp.int32)
        positions = jnp.broadcast_to(position[None], (group, tile)).reshape(1, -1)
        scaled = query.astype(jnp.float32) * options.scale
        visit = _visit(scaled, cache, tables[row][None], positions, options)
        first = _first_page(first_position, size, options) // PAGES_AT_ONCE
        seen = jnp.minimum(first_position + tile, context_lengths[row])
        result = _finish(lax.fori_loop(first, _pages(seen, size * PAGES_AT_ONCE), visit, start))
        result = result.reshape(kv_heads, group, tile, head_dim).transpose(2, 0, 1, 3).reshape(tile, heads, head_dim)
        return lax.dynamic_update_slice_in_dim(out, result.astype(q.dtype), begin, 0)

    out = lax.fori_loop(jnp.int32(0), last_tiles[-1], one_tile, jnp.zeros_like(padded))
    return out[:tokens]


def _visit(
    q: jax.Array,  # [R, K, M, H] float32, scaled
    cache: _Pages,
    tables: jax.Array,  # [R, W], W even
    positions: jax.Array,  # [R, M] of the queries
    options: Options,
):
    """The online softmax over the next pages of every row, for `fori_loop`."""
    size = cache.k.shape[2]

    def visit(i: jax.Array, state: State) -> State:
        m, total, acc = state
        pages = lax.dynamic_slice_in_dim(tables, i * PAGES_AT_ONCE, PAGES_AT_ONCE, axis=1)  # [R, p]
        scores = _scores(q, cache.k[pages].astype(jnp.float32))  # [R, p, K, M, S]
        if cache.k_scales is not None:
            scores = scores * cache.k_scales[pages][..., None, None]
        if options.soft_cap is not None:
            scores = options.soft_cap * jnp.tanh(scores / options.soft_cap)
        at = (i * PAGES_AT_ONCE * size + jnp.arange(PAGES_AT_ONCE * size, dtype=jnp.int32)).reshape(1, -1, 1, size)
        visible = at <= positions[:, None, :, None]  # [R, p, M, S]
        if options.sliding_window is not None:
            visible &= at > positions[:, None, :, None] - options.sliding_window
        visible = visible[:, :, None]
        scores = jnp.where(visible, scores, MASKED)
        grown = jnp.maximum(m, scores.max(axis=(1, 4)))
        keep = jnp.exp(m - grown)
        # a query that sees nothing here and saw nothing before has m = MASKED: its weights must be 0, not 1
        weights = jnp.where(visible, jnp.exp(scores - grown[:, None, :, :, None]), 0.0)
        total = total * keep + weights.sum(axis=(1, 4))
        if cache.v_scales is not None:
            weights = weights * cache.v_scales[pages][..., None, None]
        acc = acc * keep[..., None] + _weighted(weights, cache.v[pages].astype(jnp.float32))
        return grown, total, acc

    return visit


def _scores(q: jax.Array, keys: jax.Array) -> jax.Array:  # [R, K, M, H], [R, p, K, S, H] -> [R, p, K, M, S]
    if q.shape[0] == 1:
        return jnp.einsum("rkmh,rpksh->rpkms", q, keys)
    return jnp.sum(q[:, None, :, :, None, :] * keys[:, :, :, None], axis=5)


def _weighted(weights: jax.Array, values: jax.Array) -> jax.Array:  # [R, p, K, M, S], [R, p, K, S, H] -> [R, K, M, H]
    if weights.shape[0] == 1:
        return jnp.einsum("rpkms,rpksh->rkmh", weights, values)
    return jnp.sum(weights[..., None] * values[:, :, :, None], axis=(1, 4))


def _start(sinks: jax.Array | None, rows: int, kv_heads: int, group: int, tile: int, head_dim: int) -> State:
    """Nothing seen yet, or only the sinks: a logit with no value."""
    shape = (rows, kv_heads, group * tile)
    acc = jnp.zeros((*shape, head_dim), jnp.float32)
    if sinks is None:
        return jnp.full(shape, MASKED, jnp.float32), jnp.zeros(shape, jnp.float32), acc
    per_head = sinks.astype(jnp.float32).reshape(1, kv_heads, group, 1)
    logits = jnp.broadcast_to(per_head, (rows, kv_heads, group, tile)).reshape(shape)
    return logits, jnp.ones(shape, jnp.float32), acc


def _finish(state: State) -> jax.Array:  # [R, K, M, H]; zeros where nothing was seen
    _, total, acc = state
    return acc / jnp.maximum(total, 1e-30)[..., None]


def _even(tables: jax.Array) -> jax.Array:
    """Tables whose width is a multiple of the pages visited at once; page 0 fills them up."""
    return jnp.pad(tables, ((0, 0), (0, -tables.shape[1] % PAGES_AT_ONCE)))


def _pages(tokens: jax.Array, size: int) -> jax.Array:
    return lax.div(tokens + jnp.int32(size - 1), jnp.int32(size))


def _first_page(position: jax.Array, size: int, options: Options) -> jax.Array:
    """The first page that a query at `position`, or after it, can see."""
    if options.sliding_window is None:
        return jnp.int32(0)
    return lax.div(jnp.maximum(position - jnp.int32(options.sliding_window - 1), 0), jnp.int32(size))
