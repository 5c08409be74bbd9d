"""The two calls of paged attention, and the choice of who computes them.

Keys and values lie in pages `[P, K, S, H]`; a row's block table lists its pages in order, and token `i` of a row is at
offset `i % S` of page `table[i // S]`. Query head `n` reads KV head `n // (N // K)`. Entries of a table past a row's
tokens must name a page that holds finite numbers (page 0, by convention); they are not otherwise looked at.

Pages of float8_e4m3fn or int8 come with float32 scales, one a page and KV head: the key is page value x scale.

Legend: B, R rows, T tokens, P pages, S slots in a page, W pages in a table, N query heads, K KV heads, H head dim.
"""

import jax

from kernels_pallas.paged_attention.checks import check_contents, check_options, check_shapes, expect
from kernels_pallas.paged_attention.choice import BACKENDS, choose, device_capability, module_of
from kernels_pallas.paged_attention.options import Problem


def decode(
    q: jax.Array,  # [B, N, H] bfloat16, float16 or float32
    k_pages: jax.Array,  # [P, K, S, H] the type of q, or float8_e4m3fn or int8
    v_pages: jax.Array,  # [P, K, S, H]
    block_tables: jax.Array,  # [B, W] int32
    lengths: jax.Array,  # [B] int32
    *,
    scale: float | None = None,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,  # [N]
    k_scales: jax.Array | None = None,  # [P, K] float32
    v_scales: jax.Array | None = None,  # [P, K] float32
    backend: str = "auto",
    interpret: bool = False,
    debug: bool = False,
) -> jax.Array:  # [B, N, H]
    """One query a row, the row's last token.

    Args:
      lengths: tokens in the cache for the row, the query's own included; 0 for a padding row, which yields zeros.
      scale: of the scores, before the cap; default H ** -0.5.
      sinks: one logit a head that takes part in the softmax and has no value.
      k_scales, v_scales: for pages of float8_e4m3fn and int8, and only for them.
      backend: "auto", or one of `choice.MODULES`.
      interpret: run the kernel in Pallas' interpreter, on the CPU.
      debug: check what tables and lengths hold, on the device too.

    Raises:
      ValueError, TypeError: an argument does not fit; the message names it. Nothing has been launched.
      UnsupportedByBackend: the backend asked for cannot compute this; the message names the limit.
    """
    problem = check_shapes(q, k_pages, v_pages, block_tables, sinks, k_scales, v_scales)
    options = check_options(problem.head_dim, scale, sliding_window, soft_cap, interpret)
    expect("lengths", lengths, (q.shape[0],))
    expect("block_tables", block_tables, (q.shape[0], block_tables.shape[1]))
    run = _backend(backend, problem, interpret).decode
    if debug:
        block_tables = check_contents(k_pages, block_tables, "lengths", lengths)
    return run(q, k_pages, v_pages, block_tables, lengths, sinks, k_scales, v_scales, options)


def prefill(
    q: jax.Array,  # [T, N, H] bfloat16, float16 or float32
    k_pages: jax.Array,  # [P, K, S, H] the type of q, or float8_e4m3fn or int8
    v_pages: jax.Array,  # [P, K, S, H]
    block_tables: jax.Array,  # [R, W] int32
    query_offsets: jax.Array,  # [R + 1] int32
    context_lengths: jax.Array,  # [R] int32
    *,
    scale: float | None = None,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,  # [N]
    k_scales: jax.Array | None = None,  # [P, K] float32
    v_scales: jax.Array | None = None,  # [P, K] float32
    backend: str = "auto",
    interpret: bool = False,
    debug: bool = False,
) -> jax.Array:  # [T, N, H]
    """Chunks of several rows, one after the other in `q`; each sees its row's cache up to its own position.

    Args:
      query_offsets: row r's queries are q[query_offsets[r] : query_offsets[r + 1]]; the first offset is 0, and rows may
        be empty. Queries past the last offset are padding: any finite output.
      context_lengths: tokens in the cache for the row, this chunk's own included, so that its first query is at
        position context_lengths[r] - (query_offsets[r + 1] - query_offsets[r]).
      The others: see `decode`.

    Raises:
      ValueError, TypeError, UnsupportedByBackend: as `decode`.
    """
    problem = check_shapes(q, k_pages, v_pages, block_tables, sinks, k_scales, v_scales)
    options = check_options(problem.head_dim, scale, sliding_window, soft_cap, interpret)
    rows = block_tables.shape[0]
    expect("query_offsets", query_offsets, (rows + 1,))
    expect("context_lengths", context_lengths, (rows,))
    run = _backend(backend, problem, interpret).prefill
    if debug:
        block_tables = check_contents(
            k_pages, block_tables, "context_lengths", context_lengths, query_offsets, q.shape[0]
        )
    return run(q, k_pages, v_pages, block_tables, query_offsets, context_lengths, sinks, k_scales, v_scales, options)


def _backend(name: str, problem: Problem, interpret: bool):
    if name not in BACKENDS:
        raise ValueError(f"backend = {name!r} is not known: give one of {', '.join(BACKENDS)}")
    # interpreted, a kernel runs on the CPU whatever else is here
    return module_of(choose(name, problem, None if interpret and name != "auto" else device_capability()))
