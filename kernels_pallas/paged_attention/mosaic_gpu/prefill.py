"""Prefill: a program a (query tile, heads) of three warpgroups, two that compute and one that feeds them.

    producer             K, V pages ---TMA---> ring [ tile | tile ]      waits for free slots, says when one is ready
    computing, 0 and 1   64 query rows each: scores, softmax, values     wait for ready slots, say when one is free

Where a KV head has an even number of query heads, the two computing warpgroups take two heads of it at the same 64
queries; otherwise one head at 128 queries. Either way a tile of K and V serves 128 rows.

Which KV tiles are visited, by a tile of queries with a sliding window, and which of them are masked (m):

    tokens     0 ........ window's edge of the first query ............. last query ....... context
    tiles              skipped      [ m ][ m ][   ][   ][   ][ m ][ m ]     skipped
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
from kernels_pallas.paged_attention.mosaic_gpu.pages import clear, row_factors, visible_row
from kernels_pallas.paged_attention.mosaic_gpu.ragged import ALIGNED, QueryTiles, cut
from kernels_pallas.paged_attention.mosaic_gpu.tiles import PrefillTile, prefill_tile
from kernels_pallas.paged_attention.mosaic_gpu.widths import positive_scale, widen
from kernels_pallas.paged_attention.options import Options
from kernels_pallas.pages import Pages

REGISTERS = {False: (240, 24), True: (216, 72)}
"""Of a thread of two computing warpgroups and of their producer, which widens pages of 8 bits (True)."""


class Inputs(NamedTuple):
    q: Any  # [T, N, H]
    pages: Pages
    tables: Any  # [R, W]
    tiles: Any  # [6, tiles], the fields of QueryTiles
    sinks: Any | None  # [N] float32


class Ring(NamedTuple):
    """Tiles of keys, or of values, in shared memory: the producer fills slots in turn."""

    free: Any | None  # barriers, one a slot: every computing warpgroup has read it
    ready: Any  # barriers, one a slot: it is filled
    slots: Any  # [stages, C, H]


class Narrow(NamedTuple):
    """The rings of pages of 8 bits, which the producer alone fills and reads."""

    k: Ring
    v: Ring


def prefill(
    q: jax.Array,  # [T, N, H]
    pages: Pages,
    tables: jax.Array,  # [R, W]
    offsets: jax.Array,  # [R + 1]
    context_lengths: jax.Array,  # [R]
    sinks: jax.Array | None,  # [N]
    options: Options,
    *,
    tile: PrefillTile | None = None,
) -> jax.Array:  # [T, N, H]
    """See `paged_attention.prefill`; `tile` is otherwise taken from the table."""
    real = q.shape[0]
    q = padded(q, ALIGNED)
    tokens, heads, head_dim = q.shape
    kv_heads = pages.keys.shape[1]
    group = heads // kv_heads
    tile = tile or prefill_tile(head_dim, pages.keys.dtype)
    heads_at_once = 2 if group % 2 == 0 and tile.computing == 2 else 1
    query_tile = M * tile.computing // heads_at_once
    cuts = cut(offsets, context_lengths, tokens, query_tile)
    query, scale = positive_scale(q, options.scale)
    inputs = Inputs(
        query, pages, tables, jnp.stack(cuts), None if sinks is None else sinks.astype(jnp.float32)
    )  # fmt: skip
    # a row of the staged output must be a multiple of 128 bytes
    out = jax.ShapeDtypeStruct(q.shape, q.dtype if head_dim % 64 == 0 else jnp.float32)
    call = launch(
        _body(inputs, heads_at_once, tile, scale, options),
        name="paged_prefill",
        grid={"heads": group // heads_at_once, "kv_head": kv_heads, "tile": inputs.tiles.shape[1]},
        out_type=[out], interpret=options.interpret, warpgroups=tile.computing + 1,
    )  # fmt: skip
    return call(*jax.tree.leaves(inputs))[0][:real].astype(q.dtype)


def _body(given: Inputs, heads_at_once: int, kv_tile: PrefillTile, scale: float, options: Options):
    """The kernel for inputs of these shapes."""
    ops = operations(options.interpret)
    structure = jax.tree.structure(given)
    _, kv_heads, page_size, head_dim = given.pages.keys.shape
    dtype, kv_dtype = given.q.dtype, given.pages.keys.dtype
    group, (tokens, stages, computing) = given.q.shape[1] // kv_heads, kv_tile
    quantised = kv_dtype != dtype
    window, num_tiles = options.sliding_window, given.tiles.shape[1]
    query_tile = M * computing // heads_at_once

    def body(*refs):
        inputs: Inputs = jax.tree.unflatten(structure, refs[: structure.num_leaves])
        out = refs[-1]
        warpgroup, kv_head = lax.axis_index("wg"), lax.axis_index("kv_head")
        # the last tiles have the most to do: they start first
        index = num_tiles - 1 - lax.axis_index("tile")
        queries = QueryTiles(*(inputs.tiles[i, index] for i in range(len(QueryTiles._fields))))
        first_head = kv_head * group + lax.axis_index("heads") * heads_at_once

        end = jnp.minimum(queries.position + query_tile, queries.context)
        begin = jnp.int32(0)
        if window is not None:
            begin = jnp.maximum(queries.position + queries.begin - queries.start - (window - 1), 0)
        row = visible_row(inputs.tables, queries.row, begin, end, page_size, tokens)
        first = row.first_tile
        last = jnp.where(end > 0, row.last_tile + 1, first)

        def scope(q_s, q_ready, k, v, staged, turn, cleared, narrow=None):
            def sticks_out(at):
                return (at + 1) * tokens > end

            def compute():
                if computing == 2:  # a single one has enough from the start
                    plgpu.set_max_registers(REGISTERS[quantised][0], action="increase")
                inside = warpgroup * (0 if heads_at_once > 1 else M)  # of the tile, its first query
                head = first_head + (warpgroup if heads_at_once > 1 else 0)
                q_own, position = q_s.at[warpgroup], queries.position + inside
                start = pl.multiple_of(queries.start + inside, ALIGNED)
                plgpu.copy_gmem_to_smem(inputs.q.at[pl.ds(start, M), head], q_own, q_ready.at[warpgroup])
                sink = None if inputs.sinks is None else ops.rows(0.0) + inputs.sinks[head]
                plgpu.barrier_wait(q_ready.at[warpgroup])

                def step(at, state, masked, ending=False):
                    slot = lax.rem(at - first, jnp.int32(stages))
                    clears = ending and not quantised

                    def wait_for_values():
                        plgpu.barrier_wait(v.ready.at[slot])

                    if clears:  # before the scores: few registers are in use

                        @pl.when(sticks_out(at))
                        def _():
                            wait_for_values()
                            clear_end(at, v.slots.at[slot])

                    plgpu.barrier_wait(k.ready.at[slot])
                    scores = ops.scores(q_own, k.slots.at[slot])
                    ops.free(k.free.at[slot])
                    scores, c = softmax.capped(scores, scale, options.soft_cap)
                    if masked:
                        ahead = ops.index(tokens, 1) - ops.index(tokens, 0) + (at * tokens - position)
                        visible = ahead <= 0
                        if window is not None:
                            visible &= ahead > -window
                        scores = jnp.where(visible, scores, softmax.MASKED)
                    state, weights = softmax.weigh(state, scores, c)
                    if clears:
                        pl.when(jnp.logical_not(sticks_out(at)))(wait_for_values)
                    else:
                        wait_for_values()
                    acc = ops.add_weighted(state.acc, weights.astype(dtype), v.slots.at[slot])
                    ops.free(v.free.at[slot])
                    return state._replace(acc=acc)

                def clear_end(at, values):
                    """By the first warpgroup; the second waits."""

                    @pl.when(warpgroup == 0)
                    def _():
                        clear(ops, values, end - at * tokens, row.begin_in(at, window is not None))
                        plgpu.commit_smem()  # before a product reads what was cleared
                        if computing == 2:
                            plgpu.barrier_arrive(cleared)

                    if computing == 2:
                        pl.when(warpgroup == 1)(lambda: plgpu.barrier_wait(cleared))

                # tiles that every query sees whole need no mask
                inner = jnp.where(
                    sticks_out(last - 1), last - 1, last
                )  # the tile that sticks out comes in the last loop
                whole_from, whole_to = first, lax.div(jnp.maximum(position + 1, 0), jnp.int32(tokens))
                if window is not None:
                    whole_from = lax.div(jnp.maximum(position + M - window + tokens - 1, 0), jnp.int32(tokens))
                    whole_from = jnp.clip(whole_from, first, jnp.maximum(inner, first))
                whole_to = jnp.clip(whole_to, whole_from, jnp.maximum(inner, whole_from))
                state = softmax.start(ops, head_dim, sink)
                if window is not None:
                    state = lax.fori_loop(first, whole_from, lambda at, s: step(at, s, True), state)
                state = lax.fori_loop(whole_from, whole_to, lambda at, s: step(at, s, False), state)
                state = lax.fori_loop(whole_to, last, lambda at, s: step(at, s, True, ending=True), state)
                store(softmax.finish(state), inside, head)

            def store(result, inside, head):
                buffers = staged.shape[0]
                own = staged.at[lax.rem(warpgroup, jnp.int32(buffers))]
                if buffers < computing:  # the second warpgroup waits for the first
                    pl.when(warpgroup == 1)(lambda: plgpu.barrier_wait(turn))
                own[...] = result.astype(out.dtype)
                plgpu.commit_smem()  # before it is copied out
                source = jnp.maximum(queries.begin - queries.start - inside, 0)
                count = jnp.clip(queries.end - queries.start - inside, 0, M) - source
                target = queries.start + inside + source
                for size in (64, 32, 16, 8, 4, 2, 1):

                    @pl.when(count >= size)
                    def _(size=size, source=source, target=target):
                        plgpu.copy_smem_to_gmem(own.at[pl.ds(source, size)], out.at[pl.ds(target, size), head])

                    taken = jnp.where(count >= size, size, 0)
                    source, target, count = source + taken, target + taken, count - taken
                plgpu.wait_smem_to_gmem(0)
                if buffers < computing:
                    pl.when(warpgroup == 0)(lambda: plgpu.barrier_arrive(turn))

            def produce():
                if computing == 2:
                    plgpu.set_max_registers(REGISTERS[quantised][1], action="decrease")

                def wait_free(at, barrier):  # the ring's first round finds every slot free
                    pl.when(at - first >= stages)(lambda: plgpu.barrier_wait(barrier))

                def feed(at, ids):
                    slot = lax.rem(at - first, jnp.int32(stages))
                    for half, ring in ((inputs.pages.keys, k), (inputs.pages.values, v)):
                        wait_free(at, ring.free.at[slot])  # before the copy
                        row.copy(half, kv_head, at, ids, ring.slots.at[slot], ring.ready.at[slot])
                    return row.ids(at + 1)

                def widen_tile(at, ids):
                    slot, raw = lax.rem(at - first, jnp.int32(stages)), lax.rem(at - first, jnp.int32(2))
                    pl.when(at + 1 < last)(lambda: fetch(at + 1, ids))
                    ids = row.ids(at + 2)
                    for source, ring, scales in (
                        (narrow.k, k, inputs.pages.key_scales), (narrow.v, v, inputs.pages.value_scales),
                    ):  # fmt: skip
                        factors = row_factors(ops, scales, row.ids(at), kv_head)
                        plgpu.barrier_wait(source.ready.at[raw])
                        wait_free(at, ring.free.at[slot])
                        widen(source.slots.at[raw], ring.slots.at[slot], factors)
                        plgpu.commit_smem()
                        if ring is v and kv_dtype != jnp.int8:  # which has no NaN

                            @pl.when(sticks_out(at))
                            def _(values=ring.slots.at[slot]):
                                clear(ops, values, end - at * tokens, row.begin_in(at, window is not None))
                                plgpu.commit_smem()

                        plgpu.barrier_arrive(ring.ready.at[slot])
                    return ids

                def fetch(at, ids):
                    raw = lax.rem(at - first, jnp.int32(2))
                    for half, ring in ((inputs.pages.keys, narrow.k), (inputs.pages.values, narrow.v)):
                        row.copy(half, kv_head, at, ids, ring.slots.at[raw], ring.ready.at[raw])

                if quantised:
                    pl.when(first < last)(lambda: fetch(first, row.ids(first)))
                    lax.fori_loop(first, last, widen_tile, row.ids(first + 1))
                else:
                    lax.fori_loop(first, last, feed, row.ids(first))

                @pl.loop(jnp.maximum(first, last - stages), last)
                def _(at):  # no barrier is left with an arrival that nobody has seen
                    slot = lax.rem(at - first, jnp.int32(stages))
                    plgpu.barrier_wait(k.free.at[slot])
                    plgpu.barrier_wait(v.free.at[slot])

            pl.when(warpgroup < computing)(compute)
            pl.when(warpgroup == computing)(produce)

        @pl.when(queries.end > queries.begin)
        def _():
            pl.run_scoped(
                scope,
                **_scratch(head_dim, dtype, kv_dtype, out.dtype, kv_tile, row.units),
                collective_axes="wg",
            )

    return body


def _scratch(head_dim: int, dtype: Any, kv_dtype: Any, out_dtype: Any, tile: PrefillTile, units: int) -> dict[str, Any]:
    """Shared memory and barriers of a program."""
    quantised = kv_dtype != dtype
    ring = Ring(
        free=plgpu.Barrier(num_arrivals=tile.computing, num_barriers=tile.stages),
        ready=plgpu.Barrier(num_arrivals=1 if quantised else units, num_barriers=tile.stages),
        slots=swizzled((tile.stages, tile.tokens, head_dim), dtype),
    )
    scratch = {
        "q_s": swizzled((tile.computing, M, head_dim), dtype), "k": ring, "v": ring,
        "staged": plgpu.SMEM((1 if head_dim > 128 else tile.computing, M, head_dim), out_dtype),
        "q_ready": plgpu.Barrier(num_barriers=tile.computing), "turn": plgpu.Barrier(), "cleared": plgpu.Barrier(),
    }  # fmt: skip
    if quantised:
        raw = Ring(
            free=None,
            ready=plgpu.Barrier(num_arrivals=units, num_barriers=2),
            slots=plgpu.SMEM((2, tile.tokens, head_dim), kv_dtype),
        )
        scratch["narrow"] = Narrow(raw, raw)
    return scratch
