"""The two calls of paged attention, and the choice of who computes them.

Keys and values lie in pages `[P, K, S, H]`; a row's block table lists its pages in order, and token `i` of a row is at
offset `i % S` of page `table[i // S]`. Query head `n` reads KV head `n // (N // K)`. Entries of a table past a row's
tokens must name a page (page 0, by convention). What they hold, and what slots behind a row's end hold in its own last
page, NaN and infinities too, has no effect.

A layer's pages of keys and values, and the scales of pages of 8 bits, are one pytree: `kernels_pallas.pages.Pages`.

Legend: B, R rows, T tokens, P pages, S slots in a page, W pages in a table, N query heads, K KV heads, H head dim.
"""

import jax

from kernels_pallas.paged_attention.checks import check_contents, check_options, check_shapes, expect
from kernels_pallas.paged_attention.choice import BACKENDS, choose, device_capability, module_of
from kernels_pallas.paged_attention.options import Problem
from kernels_pallas.pages import Pages


def decode(
    q: jax.Array,  # [B, N, H] bfloat16, float16 or float32
    pages: Pages,  # of the type of q, or of float8_e4m3fn or int8 with scales
    tables: jax.Array,  # [B, W] int32
    lengths: jax.Array,  # [B] int32
    *,
    scale: float | None = None,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,  # [N]
    backend: str = "auto",
    interpret: bool = False,
    debug: bool = False,
) -> jax.Array:  # [B, N, H]
    """One query a row, the row's last token.

    Args:
      lengths: tokens in the cache for the row, the query's own included; 0 for a padding row, which yields zeros.
      scale: of the scores, before the cap; default H ** -0.5.
      sinks: one logit a head that takes part in the softmax and has no value.
      backend: "auto", or one of `choice.MODULES`.
      interpret: run the kernel in Pallas' interpreter, on the CPU.
      debug: check what tables and lengths hold, on the device too.

    Raises:
      ValueError, TypeError: an argument does not fit; the message names it. Nothing has been launched.
      UnsupportedByBackend: the backend asked for cannot compute this; the message names the limit.
    """
    problem = check_shapes(q, pages, tables, sinks)
    options = check_options(problem.head_dim, scale, sliding_window, soft_cap, interpret)
    expect("lengths", lengths, (q.shape[0],))
    expect("tables", tables, (q.shape[0], tables.shape[1]))
    run = _backend(backend, problem, interpret).decode
    if debug:
        tables = check_contents(pages, tables, "lengths", lengths)
    return run(q, pages, tables, lengths, sinks, options)


def prefill(
    q: jax.Array,  # [T, N, H] bfloat16, float16 or float32
    pages: Pages,  # of the type of q, or of float8_e4m3fn or int8 with scales
    tables: jax.Array,  # [R, W] int32
    offsets: jax.Array,  # [R + 1] int32
    context_lengths: jax.Array,  # [R] int32
    *,
    scale: float | None = None,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,  # [N]
    backend: str = "auto",
    interpret: bool = False,
    debug: bool = False,
) -> jax.Array:  # [T, N, H]
    """Chunks of several rows, one after the other in `q`; each sees its row's cache up to its own position.

    Args:
      offsets: row r's queries are q[offsets[r] : offsets[r + 1]]; the first offset is 0, and rows may be empty. Queries
        past the last offset are padding: any finite output.
      context_lengths: tokens in the cache for the row, this chunk's own included, so that its first query is at
        position context_lengths[r] - (offsets[r + 1] - offsets[r]).
      The others: see `decode`.

    Raises:
      ValueError, TypeError, UnsupportedByBackend: as `decode`.
    """
    problem = check_shapes(q, pages, tables, sinks)
    options = check_options(problem.head_dim, scale, sliding_window, soft_cap, interpret)
    rows = tables.shape[0]
    expect("offsets", offsets, (rows + 1,))
    expect("context_lengths", context_lengths, (rows,))
    run = _backend(backend, problem, interpret).prefill
    if debug:
        tables = check_contents(pages, tables, "context_lengths", context_lengths, offsets, q.shape[0])
    return run(q, pages, tables, offsets, context_lengths, sinks, options)


def _backend(name: str, problem: Problem, interpret: bool):
    if name not in BACKENDS:
        raise ValueError(f"backend = {name!r} is not known: give one of {', '.join(BACKENDS)}")
    # interpreted, a kernel runs on the CPU whatever else is here
    return module_of(choose(name, problem, None if interpret and name != "auto" else device_capability()))
