"""Decode: a program a (split, KV head, row) streams its share of the row's pages through a ring in shared memory.

    global memory                 shared memory                        registers, one warpgroup
    K page ---TMA---> ring [ tile | tile | .. ] ---wgmma---> scores [64, C]
    V page ---TMA---> ring [ tile | tile | .. ] ---wgmma---> acc [64, H]  <---  weights [64, C]
    q [G, H] --TMA--> [64, H], G of its rows real

While a tile is computed the next ones are on their way; several programs share an SM, and while one waits another
computes. The G query heads of a group are rows of one product, so that each byte of K and V is read once for all of
them. `wgmma` wants 64 rows: the others hold whatever lies there, and are never stored. Rows do not mix.

A slot of the ring holds K over V. Pages of 8 bits have a ring of their own type; a tile is widened on its way to the
product, 64 rows at a time, which are a tile's K or V or, in tiles of 32 tokens, both. Scales go to scores and weights.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas.paged_attention.mosaic_gpu import softmax
from kernels_pallas.paged_attention.mosaic_gpu.launch import launch, operations, padded, swizzled
from kernels_pallas.paged_attention.mosaic_gpu.operations import M
from kernels_pallas.paged_attention.mosaic_gpu.pages import clear, scaled, visible_row
from kernels_pallas.paged_attention.mosaic_gpu.splits import LSE_WIDTH, choose_splits, combine
from kernels_pallas.paged_attention.mosaic_gpu.tiles import DecodeTile, decode_tile
from kernels_pallas.paged_attention.mosaic_gpu.widths import compute_dtype, positive_scale, widen
from kernels_pallas.paged_attention.options import Options
from kernels_pallas.pages import Pages


class Inputs(NamedTuple):
    q: Any  # [B * N, H]
    pages: Pages
    tables: Any  # [B, W]
    lengths: Any  # [B]
    sinks: Any | None  # [N] float32


class Both(NamedTuple):
    """Of K and of V."""

    k: Any
    v: Any


def decode(
    q: jax.Array,  # [B, N, H]
    pages: Pages,
    tables: jax.Array,  # [B, W]
    lengths: jax.Array,  # [B]
    sinks: jax.Array | None,  # [N]
    options: Options,
    *,
    tile: DecodeTile | None = None,
    splits: int | None = None,
) -> jax.Array:  # [B, N, H]
    """See `paged_attention.decode`; `tile` and `splits` are otherwise taken from the table and from the shapes."""
    rows, heads, head_dim = q.shape
    _, kv_heads, page_size, _ = pages.keys.shape
    tile = tile or decode_tile(head_dim, pages.keys.dtype)
    splits = splits or choose_splits(rows, kv_heads, tables.shape[1] * page_size, tile.tokens)
    dtype = compute_dtype(q.dtype, pages.keys.dtype)
    query, scale = positive_scale(q, options.scale)
    # a row of the staged output must be a multiple of 128 bytes
    out_dtype = q.dtype if splits == 1 and head_dim % 64 == 0 else jnp.dtype(jnp.float32)
    shape = (splits, rows, heads)
    outs = [jax.ShapeDtypeStruct((*shape, head_dim), out_dtype)]
    if splits > 1:
        outs.append(jax.ShapeDtypeStruct((*shape, LSE_WIDTH), jnp.float32))
    inputs = Inputs(
        padded(query.reshape(rows * heads, head_dim).astype(dtype), 8), pages, tables, lengths,
        None if sinks is None else sinks.astype(jnp.float32),
    )  # fmt: skip
    call = launch(
        _body(inputs, outs, heads, tile, scale, options),
        name="paged_decode", grid={"split": splits, "head": kv_heads, "row": rows}, out_type=outs,
        interpret=options.interpret,
    )  # fmt: skip
    found = call(*jax.tree.leaves(inputs))
    return (found[0][0] if splits == 1 else combine(*found)).astype(q.dtype)


def _body(
    given: Inputs, outs: list[jax.ShapeDtypeStruct], heads: int, tile: DecodeTile, scale: float, options: Options
):
    """The kernel for inputs of these shapes."""
    ops = operations(options.interpret)
    structure = jax.tree.structure(given)
    _, kv_heads, page_size, head_dim = given.pages.keys.shape
    dtype, kv_dtype, splits = given.q.dtype, given.pages.keys.dtype, outs[0].shape[0]
    group, (tokens, stages) = heads // kv_heads, tile
    # q is read by whole tiles of 8 rows; the group begins `shift` rows into the first
    query_rows = 8 if 8 % group == 0 and heads % 8 == 0 else -(-(group + 7) // 8) * 8
    quantised = kv_dtype != dtype
    columns = 32 if tokens % 64 else None
    distance = stages if quantised else stages - 1  # tiles on their way while one is computed

    def body(*refs):
        inputs: Inputs = jax.tree.unflatten(structure, refs[: structure.num_leaves])
        out, lse = refs[structure.num_leaves :] if splits > 1 else (refs[-1], None)
        split, head, row = lax.axis_index("split"), lax.axis_index("head"), lax.axis_index("row")
        end = inputs.lengths[row]
        begin = jnp.int32(0)
        if options.sliding_window is not None:
            begin = jnp.maximum(end - options.sliding_window, 0)
        seen = visible_row(inputs.tables, row, begin, end, page_size, tokens)
        first = seen.first_tile
        last = jnp.where(end > 0, seen.last_tile + 1, first)
        if splits > 1:
            share = lax.div(last - first + (splits - 1), jnp.int32(splits))
            first = jnp.minimum(first + split * share, last)
            last = jnp.minimum(first + share, last)
        query_row = row * heads + head * group
        shift = lax.rem(query_row, jnp.int32(8))

        def stream(q_s, q_ready, ring, ready, wide=None):
            aligned = pl.ds(pl.multiple_of(query_row - shift, 8), query_rows)
            plgpu.copy_gmem_to_smem(inputs.q.at[aligned], q_s.at[pl.ds(0, query_rows)], q_ready)

            def fetch(at, ids):
                slot = lax.rem(at, jnp.int32(stages))
                for half, pool in enumerate((inputs.pages.keys, inputs.pages.values)):
                    to = ring.at[slot, pl.ds(half * tokens, tokens)]
                    seen.copy(pool, head, at, ids, to, (ready if quantised else ready[half]).at[slot])

            for ahead in range(distance):
                pl.when(first + ahead < last)(lambda at=first + ahead: fetch(at, seen.ids(at)))

            sink = None
            if inputs.sinks is not None:
                sink = ops.rows(softmax.MASKED)
                for g in range(group):
                    sink = jnp.where(ops.row_index() == shift + g, inputs.sinks[head * group + g], sink)
                if splits > 1:  # the sink counts once
                    sink = jnp.where(split == 0, sink, softmax.MASKED)
            plgpu.barrier_wait(q_ready)

            def step(at, carry):
                state, ids_ahead = carry
                slot, ahead = lax.rem(at, jnp.int32(stages)), at + distance
                plgpu.commit_smem()  # the slot to be refilled was read a step ago, by all four warps
                if not quantised:
                    pl.when(ahead < last)(lambda: fetch(ahead, ids_ahead))
                ids_next = seen.ids(ahead + 1)  # read a step before they are needed
                ids = seen.ids(at) if quantised else ()
                if quantised:
                    plgpu.barrier_wait(ready.at[slot])
                    for i in range(2 * tokens // M):
                        part = pl.ds(i * M, M)
                        widen(ring.at[slot, part], wide.at[part], columns=columns)
                    plgpu.commit_smem()  # the slot has been read, and is refilled at once
                    pl.when(ahead < last)(lambda: fetch(ahead, ids_ahead))
                else:
                    plgpu.barrier_wait(ready.k.at[slot])
                pair = wide if quantised else ring.at[slot]  # K over V
                k, v = (pair.at[pl.ds(half * tokens, tokens)] for half in range(2))
                sticks_out = (at + 1) * tokens > end
                if kv_dtype != jnp.int8:  # which has no NaN

                    @pl.when(sticks_out)  # before the scores: few registers are in use
                    def _():
                        if not quantised:
                            plgpu.barrier_wait(ready.v.at[slot])
                        rows = max(tokens, M)  # `clear` takes 64 at least: of smaller tiles the keys' as well
                        keys = rows - tokens
                        seen_from = seen.begin_in(at, options.sliding_window is not None)
                        if seen_from is not None:
                            seen_from += keys
                        values = pair.at[pl.ds(2 * tokens - rows, rows)]
                        clear(ops, values, end - at * tokens + keys, seen_from, keys)
                        plgpu.commit_smem()  # before the product reads what was cleared

                scores = scaled(ops, ops.scores(q_s, k), inputs.pages.key_scales, ids, head)
                scores, c = softmax.capped(scores, scale, options.soft_cap)
                token = ops.index(tokens, 1) + at * tokens
                visible = token < end
                if options.sliding_window is not None:
                    visible &= token >= begin
                state, weights = softmax.weigh(state, jnp.where(visible, scores, softmax.MASKED), c)
                weights = scaled(ops, weights, inputs.pages.value_scales, ids, head).astype(dtype)
                if not quantised:
                    pl.when(jnp.logical_not(sticks_out))(lambda: plgpu.barrier_wait(ready.v.at[slot]))
                return state._replace(acc=ops.add_weighted(state.acc, weights, v)), ids_next

            start = softmax.start(ops, head_dim, sink), seen.ids(first + distance)
            state, _ = lax.fori_loop(first, last, step, start)
            plgpu.commit_smem()  # the output is staged where the rings were
            return state

        scratch = {"q_s": swizzled((M, head_dim), dtype, columns), "q_ready": plgpu.Barrier()}
        if quantised:
            scratch["ring"] = plgpu.SMEM((stages, 2 * tokens, head_dim), kv_dtype)
            scratch["ready"] = plgpu.Barrier(num_arrivals=2 * seen.units, num_barriers=stages)
            scratch["wide"] = swizzled((2 * tokens, head_dim), dtype, columns)
        else:
            ready = plgpu.Barrier(num_arrivals=seen.units, num_barriers=stages)
            scratch["ring"] = swizzled((stages, 2 * tokens, head_dim), dtype, columns)
            scratch["ready"] = Both(ready, ready)
        state = pl.run_scoped(stream, **scratch)

        def store(staged, staged_lse=None):
            own = pl.ds(shift, group)
            staged[...] = softmax.finish(state).astype(out.dtype)
            if staged_lse is not None:
                staged_lse[...] = softmax.over_rows(softmax.log_sum(state), LSE_WIDTH)
            plgpu.commit_smem()
            where = split, row, pl.ds(head * group, group)
            plgpu.copy_smem_to_gmem(staged.at[own], out.at[where])
            if lse is not None:
                plgpu.copy_smem_to_gmem(staged_lse.at[own], lse.at[where])
            plgpu.wait_smem_to_gmem(0)

        staging = {"staged": plgpu.SMEM((M, head_dim), out.dtype)}
        if splits > 1:
            staging["staged_lse"] = plgpu.SMEM((M, LSE_WIDTH), jnp.float32)
        pl.run_scoped(store, **staging)

    return body
