"""Paged attention in Pallas Triton, for Ampere and Ada (A100, L4, RTX 30 and 40): one ragged kernel for both calls.

A program takes a tile of queries of one row, all heads of one KV head's group, and a share of the tokens that they see:

    tile of queries                          tokens of the row, BLOCK at a time
    q0 g0  q0 g1 .. | q1 g0 .. | padding     table -> page ids -> keys [BLOCK, H], values [BLOCK, H]
    `-------- rows of one product --------´  online softmax in float32, in powers of two

Decoding is a tile of one query a row; where rows are few, the tokens of a row are split over several programs, whose
results a small XLA program combines. A prefill's tiles are found by a table made beside it: row, first query, queries,
position. Queries that are padding are tiles of a row without tokens, and come out as zeros.

JAX has deprecated this backend of Pallas; it serves older GPUs while it is there.
"""

from functools import partial
from math import log2
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from kernels_pallas.paged_attention.options import Options, Problem
from kernels_pallas.pages import Pages

MASKED = -1e30
LOG2_E = 1.4426950408889634
PROGRAMS = 432
"""Enough to fill an A100: 108 multiprocessors, four programs each."""
MOST_SPLITS = 16


class Tile(NamedTuple):
    """Sizes of a program; `warps` and `stages` are Triton's."""

    queries: int
    block: int
    """Tokens of a step of the loop."""
    warps: int
    stages: int


def limit(problem: Problem) -> str | None:
    """None, or which limit of this backend the problem is outside of."""
    if problem.dtype not in ("bfloat16", "float16"):
        return f"queries of {problem.dtype} are none of bfloat16, float16"
    if problem.head_dim % 16 or not 16 <= problem.head_dim <= 256:
        return f"head dimension {problem.head_dim} is no multiple of 16 up to 256"
    if problem.group > 16:
        return f"{problem.group} query heads share a KV head, more than 16"
    return None


def decode_tile(head_dim: int, *, quantised: bool = False) -> Tile:
    """By `python -m bench.compile --target a100`: no spill, at least two programs on a multiprocessor."""
    return Tile(1, 64 if head_dim <= 128 and not quantised else 32, 4, 2)


def prefill_tile(head_dim: int, group: int, *, quantised: bool = False) -> Tile:
    """By the same command. The rows of a product are queries x group, 128 where registers allow.

    Wide heads take more of them, and so do widening, and masks for heads and groups that are no power of two.
    """
    masked = head_dim != _power(head_dim) or group != _power(group) or group == 1
    small = head_dim > 128 or quantised or masked
    rows, block = (64, 32) if small else (128, 64)
    warps = 4 if masked and head_dim <= 128 and not quantised else 8
    return Tile(max(1, rows // _power(group)), block, warps, 2)


def decode(
    q: jax.Array,  # [B, N, H]
    pages: Pages,
    tables: jax.Array,  # [B, W]
    lengths: jax.Array,  # [B]
    sinks: jax.Array | None,  # [N]
    options: Options,
) -> jax.Array:  # [B, N, H]
    """See `paged_attention.decode`."""
    rows = jnp.arange(q.shape[0], dtype=jnp.int32)
    tiles = jnp.stack([rows, rows, jnp.ones_like(rows), lengths - 1], axis=1)
    tile, kv_heads = decode_tile(q.shape[2], quantised=pages.quantised), pages.keys.shape[1]
    longest = tables.shape[1] * pages.keys.shape[2]
    splits = max(1, min(MOST_SPLITS, PROGRAMS // (q.shape[0] * kv_heads), longest // (4 * tile.block)))
    arrays = _Arrays(tiles, tables, q, pages, sinks)
    return _attend(arrays, tile, _floor_power(splits), options, "paged_decode")


def prefill(
    q: jax.Array,  # [T, N, H]
    pages: Pages,
    tables: jax.Array,  # [R, W]
    offsets: jax.Array,  # [R + 1]
    context_lengths: jax.Array,  # [R]
    sinks: jax.Array | None,  # [N]
    options: Options,
) -> jax.Array:  # [T, N, H]
    """See `paged_attention.prefill`."""
    tile = prefill_tile(q.shape[2], q.shape[1] // pages.keys.shape[1], quantised=pages.quantised)
    tiles = _cut(q.shape[0], tile.queries, offsets, context_lengths)
    arrays = _Arrays(tiles, tables, q, pages, sinks)
    return _attend(arrays, tile, 1, options, "paged_prefill")


class _Arrays(NamedTuple):
    tiles: Any  # [tiles, 4] int32: row, first query, queries, position of the first
    tables: Any  # [R, W]
    q: Any  # [T, N, H]
    pages: Pages
    sinks: Any | None  # [N]


def _cut(tokens: int, size: int, offsets: jax.Array, context_lengths: jax.Array) -> jax.Array:
    """Tiles of at most `size` queries, [tiles, 4]; what is left over has no queries."""
    rows = context_lengths.shape[0]
    chunks = offsets[1:] - offsets[:-1]
    # the queries behind the last row's are a row without tokens: its positions end at 0
    padding = tokens - offsets[-1:]
    chunks, ends = jnp.concatenate([chunks, padding]), jnp.concatenate([context_lengths, jnp.zeros_like(padding)])
    last = jnp.cumsum((chunks + size - 1) // size, dtype=jnp.int32)  # [R + 1] tiles up to and with the row
    tile = jnp.arange(tokens // size + rows + 1, dtype=jnp.int32)
    row = jnp.sum(tile[:, None] >= last[None], axis=1, dtype=jnp.int32)
    row = jnp.minimum(row, rows)
    inside = (tile - jnp.where(row > 0, last[row - 1], 0)) * size
    count = jnp.where(tile < last[-1], jnp.clip(chunks[row] - inside, 0, size), 0)
    begin = offsets[row] + inside
    return jnp.stack([jnp.minimum(row, rows - 1), begin, count, ends[row] - chunks[row] + inside], axis=1)


def _attend(arrays: _Arrays, tile: Tile, splits: int, options: Options, name: str) -> jax.Array:
    queries, heads, head_dim = arrays.q.shape
    kv_heads = arrays.pages.keys.shape[1]
    if arrays.pages.keys.dtype == jnp.float8_e4m3fn:  # Triton widens it on Ada only: the kernel does it by its bits
        keys, values = (lax.bitcast_convert_type(half, jnp.uint8) for half in arrays.pages[:2])
        arrays = arrays._replace(pages=arrays.pages._replace(keys=keys, values=values))
    out = [jax.ShapeDtypeStruct((splits, queries, heads, head_dim), arrays.q.dtype if splits == 1 else jnp.float32)]
    if splits > 1:  # the logarithm of each share's weights, to base 2
        out.append(jax.ShapeDtypeStruct((splits, queries, heads), jnp.float32))
    given, structure = jax.tree.flatten(arrays)
    found = pl.pallas_call(
        partial(_kernel, structure, tile, splits, heads // kv_heads, options),
        out_shape=out,
        grid=(arrays.tiles.shape[0], kv_heads, splits),
        compiler_params=plt.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=options.interpret,
        name=name,
    )(*given)
    return found[0][0] if splits == 1 else _combine(found[0], found[1]).astype(arrays.q.dtype)


def _combine(parts: jax.Array, weights: jax.Array) -> jax.Array:  # [splits, T, N, H], [splits, T, N] -> [T, N, H]
    share = jnp.exp2(weights - weights.max(axis=0, keepdims=True))
    return jnp.sum(parts * (share / share.sum(axis=0, keepdims=True))[..., None], axis=0)


def _kernel(structure: Any, tile: Tile, splits: int, group: int, options: Options, *refs: Any) -> None:
    """The references are to the arrays that `structure` names, then to the output and, with splits, its weights."""
    inputs, outputs = refs[: structure.num_leaves], refs[structure.num_leaves :]
    at: _Arrays = jax.tree.unflatten(structure, inputs)
    out, log_weights = outputs if splits > 1 else (*outputs, None)
    pages = at.pages
    page_size, head_dim = pages.keys.shape[2:]
    head, split = pl.program_id(1), pl.program_id(2)
    row, begin, count, position = (plt.load(at.tiles.at[pl.program_id(0), jnp.int32(i)]) for i in range(4))

    padded = max(_power(group), 16 // tile.queries)
    lane = jnp.arange(tile.queries * padded, dtype=jnp.int32)
    query, member = lane // padded, lane % padded
    real = (query < count) & (member < group)
    dims = jnp.arange(_power(head_dim), dtype=jnp.int32)
    inside = dims < head_dim
    # A lane that is padding reads and writes nothing. Its place must still be no other lane's: the interpreter writes
    # back what it finds there.
    place = (begin + query)[:, None], (head * group + member)[:, None], dims[None]
    q = plt.load(at.q.at[place], mask=real[:, None] & inside[None], other=0.0)
    positions = position + query

    def step(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        peak, total, acc = state
        token = i * tile.block + jnp.arange(tile.block, dtype=jnp.int32)
        held = token < position + count
        page = plt.load(at.tables.at[row, jnp.where(held, token // page_size, 0)], mask=held, other=0)
        slots = page[:, None], head, (token % page_size)[:, None], dims[None]
        there = held[:, None] & inside[None]
        keys = _widened(plt.load(pages.keys.at[slots], mask=there, other=0), q.dtype)
        scores = jnp.dot(q, keys.T, preferred_element_type=jnp.float32)
        if pages.key_scales is not None:
            scores = scores * plt.load(pages.key_scales.at[page, head], mask=held, other=0.0)[None]
        scores = _capped(scores, options)
        visible = token[None] <= positions[:, None]
        if options.sliding_window is not None:
            visible &= token[None] > positions[:, None] - options.sliding_window
        scores = jnp.where(visible, scores, MASKED)
        grown = jnp.maximum(peak, scores.max(axis=1))
        keep = jnp.exp2(peak - grown)
        # a query that has seen nothing has peak = MASKED: its weights must be 0, not 1
        weights = jnp.where(visible, jnp.exp2(scores - grown[:, None]), 0.0)
        total = total * keep + weights.sum(axis=1)
        if pages.value_scales is not None:
            weights = weights * plt.load(pages.value_scales.at[page, head], mask=held, other=0.0)[None]
        values = _widened(plt.load(pages.values.at[slots], mask=there, other=0), q.dtype)
        product = jnp.dot(weights.astype(q.dtype), values, preferred_element_type=jnp.float32)
        return grown, total, acc * keep[:, None] + product

    first, last = _share(position, count, tile.block, split, splits, options)
    start = _start(at.sinks, head * group + member, real, split, dims.shape[0])
    peak, total, acc = lax.fori_loop(first, last, step, start)
    acc = acc / jnp.maximum(total, 1e-30)[:, None]
    plt.store(out.at[(split, *place)], acc.astype(out.dtype), mask=real[:, None] & inside[None])
    if log_weights is not None:
        weight = jnp.where(total > 0.0, peak + jnp.log2(jnp.maximum(total, 1e-30)), MASKED)
        plt.store(log_weights.at[split, begin + query, head * group + member], weight, mask=real)


def _share(
    position: jax.Array, count: jax.Array, block: int, split: jax.Array, splits: int, options: Options
) -> tuple[jax.Array, jax.Array]:
    """The blocks of tokens that this program visits: those that some query of the tile sees, or its share of them."""
    last = (jnp.maximum(position + count, 0) + (block - 1)) // block
    first = jnp.int32(0)
    if options.sliding_window is not None:
        first = jnp.minimum(jnp.maximum(position - (options.sliding_window - 1), 0) // block, last)
    if splits > 1:
        share = (last - first + (splits - 1)) // splits
        first = jnp.minimum(first + split * share, last)
        last = jnp.minimum(first + share, last)
    return first, last


def _start(sinks: Any | None, heads: jax.Array, real: jax.Array, split: jax.Array, width: int) -> tuple[jax.Array, ...]:
    """Nothing seen yet, or, in the first share, only the sinks: a logit with no value."""
    peak, total = jnp.full(heads.shape, MASKED, jnp.float32), jnp.zeros(heads.shape, jnp.float32)
    if sinks is not None:
        logits = plt.load(sinks.at[heads], mask=real, other=0.0).astype(jnp.float32) * LOG2_E
        counted = jnp.broadcast_to(split == 0, heads.shape)
        peak, total = jnp.where(counted, logits, peak), jnp.where(counted, 1.0, total)
    return peak, total, jnp.zeros((heads.shape[0], width), jnp.float32)


def _capped(scores: jax.Array, options: Options) -> jax.Array:
    """Scaled and capped, to base 2."""
    if options.soft_cap is None:
        return scores * (options.scale * LOG2_E)
    return jnp.tanh(scores * (options.scale / options.soft_cap)) * (options.soft_cap * LOG2_E)


def _widened(x: jax.Array, dtype: Any) -> jax.Array:
    """Page values in the type of the product. uint8 holds float8_e4m3fn: its exponent and mantissa, put into those of a
    float16, are the value over 256."""
    if x.dtype != jnp.uint8:
        return x.astype(dtype)
    bits = x.astype(jnp.uint16)
    half = ((bits & jnp.uint16(0x80)) << jnp.uint16(8)) | ((bits & jnp.uint16(0x7F)) << jnp.uint16(7))
    return (lax.bitcast_convert_type(half, jnp.float16).astype(jnp.float32) * 256.0).astype(dtype)


def _power(n: int) -> int:
    """The power of two at or above n."""
    return 1 << (n - 1).bit_length()


def _floor_power(n: int) -> int:
    return 1 << int(log2(n))
