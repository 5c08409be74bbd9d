"""Paged attention in plain XLA: the oracle of the kernels, and what the CPU runs.

Work follows real lengths, not the table's width: blocks of rows (decode) or tiles of queries (prefill) are taken in
turn, and for each the pages that it can see, in a loop whose trip count is known at run time. The softmax is taken
online, in float32: a running maximum `m`, a running sum, and an accumulator that is rescaled when the maximum grows.

    m' = max(m, max s)    sum' = sum e^(m-m') + sum_s e^(s-m')    acc' = acc e^(m-m') + e^(s-m') V

What was measured (float32, 2 query heads on each of 4 KV heads x 64, 2 cores of an EPYC with AVX-512, JAX 0.10.2 and
0.11.2, medians): decode of 64 rows of 64-290 tokens 2.5 ms, of which half goes to copying pages and q.K; multiplying
and adding instead of small products 3.2 ms; all rows in one block 4.5 ms. Prefill of 1,000 queries in six rows, 8 tiles
at once 5.8 ms, one tile at a time 8 ms. Gathering whole tables first: over 35. Rows and tiles are sorted by length, so
that those of a block end together: without that, decode takes a third longer. Those are pages of 32, two at once; pages
of 16 (decode; the machine slower): 32 tokens visited at once 5.9 ms, 64 4.6, 128 6.6. A chunk of 64 after 384 tokens,
two tiles in a block of 8, 4 or 2: 4.1, 2.9, 2.0 ms.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernels_pallas.paged_attention.options import Options, Problem
from kernels_pallas.pages import Pages

MASKED = -1e30
"""Finite, so that a page without a visible token is harmless: 0 x NaN would not be."""
QUERY_TILE = 32
TILES_AT_ONCE = 8
ROW_BLOCK = 16
TOKENS_AT_ONCE = 64
_FAR = 1 << 30  # the position of a query that is padding: it widens no window

State = tuple[jax.Array, jax.Array, jax.Array]  # m, sum [R, K, M] and acc [R, K, M, H], float32


def limit(problem: Problem) -> str | None:
    """None: the reference computes everything."""
    return None


def decode(
    q: jax.Array,  # [B, N, H]
    pages: Pages,
    tables: jax.Array,  # [B, W]
    lengths: jax.Array,  # [B]
    sinks: jax.Array | None,  # [N]
    options: Options,
) -> jax.Array:  # [B, N, H]
    rows, heads, head_dim = q.shape
    kv_heads, size = pages.keys.shape[1:3]
    group, at_once = heads // kv_heads, _pages_at_once(size)
    block = ROW_BLOCK if rows % ROW_BLOCK == 0 else rows
    start = _start(sinks, block, kv_heads, group, 1, head_dim)

    def one_block(given: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        query, table, length = given
        positions = jnp.broadcast_to((length - 1)[:, None], (block, group))
        scaled = query.reshape(block, kv_heads, group, head_dim).astype(jnp.float32) * options.scale
        visit = _visit(scaled, pages, table, positions, length, options)
        first = _first_page(jnp.min(length) - 1, size, options) // at_once
        last = _pages(jnp.max(length), size * at_once)
        return _finish(lax.fori_loop(first, last, visit, start)).reshape(block, heads, head_dim).astype(q.dtype)

    order = jnp.argsort(lengths) if rows > block else jnp.arange(rows)
    given = q[order], _filled_up(tables, size)[order], lengths[order]
    blocks = jax.tree.map(lambda x: x.reshape(rows // block, block, *x.shape[1:]), given)
    return jnp.zeros_like(q).at[order].set(lax.map(one_block, blocks).reshape(q.shape))


def prefill(
    q: jax.Array,  # [T, N, H]
    pages: Pages,
    tables: jax.Array,  # [R, W]
    offsets: jax.Array,  # [R + 1]
    context_lengths: jax.Array,  # [R]
    sinks: jax.Array | None,  # [N]
    options: Options,
) -> jax.Array:  # [T, N, H]
    """Each row's queries are cut into tiles; tiles are taken in blocks, those that see most first.

    row 0: 70 queries   |tile 0|tile 1|t2|          row 1: 40 queries   |tile 3|t4|
    blocks of up to 8 tiles by what they see: all heads of all their queries in one product a page
    """
    tokens, heads, head_dim = q.shape
    kv_heads, size = pages.keys.shape[1:3]
    group, tile, at_once = heads // kv_heads, min(QUERY_TILE, tokens), _pages_at_once(size)
    abreast = min(max(tokens // tile, 2), TILES_AT_ONCE)  # A: more than a small step's tiles would be padding
    start = _start(sinks, abreast, kv_heads, group, tile, head_dim)
    tables = _filled_up(tables, size)
    tiles, blocks = _cut_into_tiles(tokens, tile, abreast, tables, offsets, context_lengths)
    lane = jnp.arange(tile, dtype=jnp.int32)

    def one_block(i: jax.Array, out: jax.Array) -> jax.Array:
        now = jax.tree.map(lambda x: x[i], tiles)
        at = now.begin[:, None] + lane[None]  # [A, tile]
        query = q[jnp.minimum(at, tokens - 1)].reshape(abreast, tile, kv_heads, group, head_dim)
        query = query.transpose(0, 2, 3, 1, 4).reshape(abreast, kv_heads, group * tile, head_dim)
        position = now.position[:, None] + lane[None]
        positions = jnp.broadcast_to(position[:, None], (abreast, group, tile)).reshape(abreast, -1)
        visit = _visit(query.astype(jnp.float32) * options.scale, pages, now.table, positions, now.seen, options)
        first = _first_page(jnp.min(now.position), size, options) // at_once
        last = _pages(jnp.max(now.seen), size * at_once)
        result = _finish(lax.fori_loop(first, last, visit, start))
        result = result.reshape(abreast, kv_heads, group, tile, head_dim).transpose(0, 3, 1, 2, 4)
        to = jnp.where(lane[None] < now.queries[:, None], at, tokens)  # a tile's empty tail goes nowhere
        return out.at[to].set(result.reshape(abreast, tile, heads, head_dim).astype(q.dtype), mode="drop")

    # From q, not from zeros: XLA makes the zeros of every layer first, and keeps them (2 GiB in an 8B prefill step).
    return lax.fori_loop(jnp.int32(0), blocks, one_block, q)


class _Tiles(NamedTuple):
    """Tiles of queries, [blocks, A], those that see most first."""

    table: jax.Array  # [.., W] of the tile's row
    begin: jax.Array  # its first query
    queries: jax.Array  # how many it has: at most the tile's size, 0 for padding
    position: jax.Array  # of its first query in the sequence
    seen: jax.Array  # tokens that its last query sees, 0 for padding


def _cut_into_tiles(
    tokens: int,
    tile: int,
    abreast: int,
    tables: jax.Array,  # [R, W]
    offsets: jax.Array,  # [R + 1]
    context_lengths: jax.Array,  # [R]
) -> tuple[_Tiles, jax.Array]:
    """All tiles that `tokens` queries can make, and how many blocks hold a query."""
    rows = tables.shape[0]
    count = -(-(tokens // tile + rows) // abreast) * abreast
    chunks = offsets[1:] - offsets[:-1]
    each = (chunks + tile - 1) // tile
    upto = jnp.cumsum(each, dtype=jnp.int32)  # [R] tiles up to and with the row
    ids = jnp.arange(count, dtype=jnp.int32)
    row = jnp.minimum(jnp.sum(ids[:, None] >= upto[None], axis=1, dtype=jnp.int32), rows - 1)
    inside = (ids - (upto - each)[row]) * tile  # queries of the row before this tile
    queries = jnp.where(ids < upto[-1], jnp.minimum(chunks[row] - inside, tile), 0)
    position = jnp.where(queries > 0, context_lengths[row] - chunks[row] + inside, _FAR)
    seen = jnp.where(queries > 0, position + queries, 0)
    tiles = _Tiles(tables[row], offsets[row] + inside, queries, position, seen)
    order = jnp.argsort(-seen)
    tiles = jax.tree.map(lambda x: x[order].reshape(count // abreast, abreast, *x.shape[1:]), tiles)
    return tiles, lax.div(upto[-1] + jnp.int32(abreast - 1), jnp.int32(abreast))


def _visit(
    q: jax.Array,  # [R, K, M, H] float32, scaled
    pages: Pages,
    tables: jax.Array,  # [R, W], W a multiple of the pages visited at once
    positions: jax.Array,  # [R, M] of the queries
    lengths: jax.Array,  # [R] tokens that are the row's
    options: Options,
):
    """The online softmax over the next pages of every row, for `fori_loop`.

    Slots behind a row's end hold what others left there, NaN perhaps. Their weight is 0, and 0 x NaN is NaN: their
    values become 0 too.
    """
    size = pages.keys.shape[2]
    at_once = _pages_at_once(size)

    def visit(i: jax.Array, state: State) -> State:
        m, total, acc = state
        ids = lax.dynamic_slice_in_dim(tables, i * at_once, at_once, axis=1)  # [R, p]
        scores = _scores(q, _take(pages.keys, ids))  # [R, p, K, M, S]
        if pages.key_scales is not None:
            scores = scores * pages.key_scales[ids][..., None, None]
        if options.soft_cap is not None:
            scores = options.soft_cap * jnp.tanh(scores / options.soft_cap)
        at = (i * at_once * size + jnp.arange(at_once * size, dtype=jnp.int32)).reshape(1, -1, 1, size)
        held = at[:, :, 0] < lengths[:, None, None]  # [R, p, S]
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
        if pages.value_scales is not None:
            scales = jnp.where(held[:, :, :1], pages.value_scales[ids], 0.0)  # [R, p, K]
            weights = weights * scales[..., None, None]
        values = jnp.where(held[:, :, None, :, None], _take(pages.values, ids), 0.0)
        acc = acc * keep[..., None] + _weighted(weights, values)
        return grown, total, acc

    return visit


def _take(pages: jax.Array, ids: jax.Array) -> jax.Array:  # [P, K, S, H], [R, p] -> [R, p, K, S, H] float32
    """Whole pages, each a run of memory: as rows of a matrix XLA copies them twice as fast as by four dimensions."""
    return pages.reshape(pages.shape[0], -1)[ids].reshape(*ids.shape, *pages.shape[1:]).astype(jnp.float32)


def _scores(q: jax.Array, keys: jax.Array) -> jax.Array:  # [R, K, M, H], [R, p, K, S, H] -> [R, p, K, M, S]
    each = jnp.broadcast_to(q[:, None], (*keys.shape[:2], *q.shape[1:]))
    return jnp.einsum("rpkmh,rpksh->rpkms", each, keys)


def _weighted(weights: jax.Array, values: jax.Array) -> jax.Array:  # [R, p, K, M, S], [R, p, K, S, H] -> [R, K, M, H]
    # One product a page, summed after: a sum over pages inside the product would make XLA transpose the values first.
    return jnp.einsum("rpkms,rpksh->rpkmh", weights, values).sum(axis=1)


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


def _pages_at_once(size: int) -> int:
    return max(TOKENS_AT_ONCE // size, 1)


def _filled_up(tables: jax.Array, size: int) -> jax.Array:
    """Tables whose width is a multiple of the pages visited at once; page 0 fills them up."""
    return jnp.pad(tables, ((0, 0), (0, -tables.shape[1] % _pages_at_once(size))))


def _pages(tokens: jax.Array, size: int) -> jax.Array:
    return lax.div(tokens + jnp.int32(size - 1), jnp.int32(size))


def _first_page(position: jax.Array, size: int, options: Options) -> jax.Array:
    """The first page that a query at `position`, or after it, can see."""
    if options.sliding_window is None:
        return jnp.int32(0)
    return lax.div(jnp.maximum(position - jnp.int32(options.sliding_window - 1), 0), jnp.int32(size))
