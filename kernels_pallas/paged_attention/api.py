"""The two calls of paged attention, and the choice of who computes them.

Keys and values lie in pages `[P, K, S, H]`; a row's block table lists its pages in order, and token `i` of a row is at
offset `i % S` of page `table[i // S]`. Query head `n` reads KV head `n // (N // K)`. Entries of a table past a row's
tokens must name a page that holds finite numbers (page 0, by convention); they are not otherwise looked at.

Legend: B, R rows, T tokens, P pages, S slots in a page, W pages in a table, N query heads, K KV heads, H head dim.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from kernels_pallas.paged_attention import reference

Backend = Literal["auto", "reference"]
BACKENDS: tuple[str, ...] = ("auto", "reference")


@dataclass(frozen=True, slots=True)
class Options:
    """What modifies the scores, the same for every backend."""

    scale: float
    sliding_window: int | None
    """A query at position p sees positions above p - window."""
    soft_cap: float | None
    """Scores become cap * tanh(score / cap)."""


def decode(
    q: jax.Array,  # [B, N, H]
    k_pages: jax.Array,  # [P, K, S, H]
    v_pages: jax.Array,  # [P, K, S, H]
    block_tables: jax.Array,  # [B, W] int32
    lengths: jax.Array,  # [B] int32
    *,
    scale: float | None = None,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,  # [N]
    backend: str = "auto",
) -> jax.Array:  # [B, N, H]
    """One query a row, the row's last token.

    Args:
      lengths: tokens in the cache for the row, the query's own included; 0 for a padding row, which yields zeros.
      scale: of the scores, before the cap; default H ** -0.5.
      sinks: one logit a head that takes part in the softmax and has no value.

    Raises:
      ValueError, TypeError: an argument does not fit; the message names it. Nothing has been launched.
    """
    options = _check(q, k_pages, v_pages, block_tables, scale, sliding_window, soft_cap, sinks, backend)
    _expect("lengths", lengths, (q.shape[0],))
    _expect("block_tables", block_tables, (q.shape[0], block_tables.shape[1]))
    return reference.decode(q, k_pages, v_pages, block_tables, lengths, sinks, options)


def prefill(
    q: jax.Array,  # [T, N, H]
    k_pages: jax.Array,  # [P, K, S, H]
    v_pages: jax.Array,  # [P, K, S, H]
    block_tables: jax.Array,  # [R, W] int32
    query_offsets: jax.Array,  # [R + 1] int32
    context_lengths: jax.Array,  # [R] int32
    *,
    scale: float | None = None,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,  # [N]
    backend: str = "auto",
) -> jax.Array:  # [T, N, H]
    """Chunks of several rows, one after the other in `q`; each sees its row's cache up to its own position.

    Args:
      query_offsets: row r's queries are q[query_offsets[r] : query_offsets[r + 1]]; rows may be empty. Queries past
        the last offset are padding: any finite output.
      context_lengths: tokens in the cache for the row, this chunk's own included, so that its first query is at
        position context_lengths[r] - (query_offsets[r + 1] - query_offsets[r]).

    Raises:
      ValueError, TypeError: an argument does not fit; the message names it. Nothing has been launched.
    """
    options = _check(q, k_pages, v_pages, block_tables, scale, sliding_window, soft_cap, sinks, backend)
    rows = block_tables.shape[0]
    _expect("query_offsets", query_offsets, (rows + 1,))
    _expect("context_lengths", context_lengths, (rows,))
    return reference.prefill(q, k_pages, v_pages, block_tables, query_offsets, context_lengths, sinks, options)


def _check(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    block_tables: jax.Array,
    scale: float | None,
    sliding_window: int | None,
    soft_cap: float | None,
    sinks: jax.Array | None,
    backend: str,
) -> Options:
    if backend not in BACKENDS:
        raise ValueError(f"backend = {backend!r} is not known: give one of {', '.join(BACKENDS)}")
    if q.ndim != 3 or k_pages.ndim != 4:
        raise ValueError(f"q must be [rows, N, H] and k_pages [P, K, S, H], not {q.shape} and {k_pages.shape}")
    if v_pages.shape != k_pages.shape or v_pages.dtype != k_pages.dtype:
        raise ValueError(
            f"v_pages {v_pages.shape} {v_pages.dtype} must be like k_pages {k_pages.shape} {k_pages.dtype}"
        )
    heads, kv_heads = q.shape[1], k_pages.shape[1]
    if q.shape[2] != k_pages.shape[3]:
        raise ValueError(f"q has head dimension {q.shape[2]}, k_pages {k_pages.shape[3]}")
    if heads % kv_heads:
        raise ValueError(f"q has {heads} heads: not a multiple of k_pages' {kv_heads}")
    if q.dtype != k_pages.dtype or not jnp.issubdtype(q.dtype, jnp.floating):
        raise TypeError(f"q ({q.dtype}) and k_pages ({k_pages.dtype}) must have one floating type")
    if block_tables.ndim != 2 or not jnp.issubdtype(block_tables.dtype, jnp.int32):
        raise TypeError(f"block_tables must be [rows, W] int32, not {block_tables.shape} {block_tables.dtype}")
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window = {sliding_window} must be at least 1, or None")
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"soft_cap = {soft_cap} must be positive, or None")
    if sinks is not None and sinks.shape != (heads,):
        raise ValueError(f"sinks must be [N] = [{heads}], not {sinks.shape}")
    return Options(q.shape[2] ** -0.5 if scale is None else scale, sliding_window, soft_cap)


def _expect(name: str, array: jax.Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype != jnp.int32:
        raise ValueError(f"{name} must be {list(shape)} int32, not {list(array.shape)} {array.dtype}")
