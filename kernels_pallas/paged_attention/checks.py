"""What can be wrong with the arguments of an attention call.

Shapes and types are looked at on every call, before anything is launched. The contents of tables and lengths are not:
the host side, which made them, has checked them. With `debug` they are looked at too, also inside a jitted program:
there the device counts what is wrong, reads page 0 instead of a page that does not exist, and the program fails with
the argument's name.
"""

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas.paged_attention.options import FLOATS, QUANTISED, Problem


def check_shapes(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    block_tables: jax.Array,
    sinks: jax.Array | None,
    k_scales: jax.Array | None,
    v_scales: jax.Array | None,
) -> Problem:
    """The problem that the arguments pose. ValueError or TypeError names the one that does not fit."""
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
    if q.dtype.name not in FLOATS or k_pages.dtype.name not in (q.dtype.name, *QUANTISED):
        raise TypeError(
            f"q ({q.dtype}) must be {', '.join(FLOATS[:-1])} or {FLOATS[-1]}, and k_pages ({k_pages.dtype}) must have "
            f"one floating type with it, or be {' or '.join(QUANTISED)}"
        )
    if block_tables.ndim != 2 or block_tables.dtype != jnp.int32:
        raise TypeError(f"block_tables must be [rows, W] int32, not {block_tables.shape} {block_tables.dtype}")
    if sinks is not None and sinks.shape != (heads,):
        raise ValueError(f"sinks must be [N] = [{heads}], not {sinks.shape}")
    problem = Problem(q.shape[2], heads // kv_heads, k_pages.shape[2], q.dtype.name, k_pages.dtype.name)
    for name, scales in (("k_scales", k_scales), ("v_scales", v_scales)):
        if (scales is not None) != problem.quantised:
            wanted = "needed for" if problem.quantised else "given, and there are none for"
            raise ValueError(f"{name} are {wanted} pages of {problem.kv_dtype}")
        if scales is not None and (scales.shape != k_pages.shape[:2] or scales.dtype != jnp.float32):
            raise ValueError(f"{name} must be [P, K] = {k_pages.shape[:2]} float32, not {scales.shape} {scales.dtype}")
    return problem


def check_options(scale: float | None, sliding_window: int | None, soft_cap: float | None) -> None:
    if scale is not None and not np.isfinite(scale):
        raise ValueError(f"scale = {scale} must be finite")
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window = {sliding_window} must be at least 1, or None")
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"soft_cap = {soft_cap} must be positive, or None")


def expect(name: str, array: jax.Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype != jnp.int32:
        raise ValueError(f"{name} must be {list(shape)} int32, not {list(array.shape)} {array.dtype}")


def check_contents(
    k_pages: jax.Array,
    block_tables: jax.Array,  # [R, W]
    lengths_name: str,
    lengths: jax.Array,  # [R] tokens in the cache
    query_offsets: jax.Array | None = None,  # [R + 1]
    queries: int = 0,
) -> jax.Array:
    """The tables, with page 0 where they name a page that does not exist.

    ValueError names what is wrong; inside a jitted program it comes as JAX's runtime error, when the program has run.
    """
    pages, _, size, _ = k_pages.shape
    width = block_tables.shape[1]
    used = jnp.arange(width, dtype=jnp.int32)[None] * size < lengths[:, None]
    outside = (block_tables < 0) | (block_tables >= pages)
    wrong = {
        f"block_tables: entries that are read name no page from 0 to {pages - 1}": jnp.sum(outside & used),
        f"{lengths_name}: rows are below 0 or above the {width * size} tokens that a table's {width} pages hold":
            jnp.sum((lengths < 0) | (lengths > width * size)),
    }  # fmt: skip
    if query_offsets is not None:
        chunks = query_offsets[1:] - query_offsets[:-1]
        ends = jnp.stack([query_offsets[0] != 0, query_offsets[-1] > queries])
        wrong[f"query_offsets: do not start at 0, grow, and end at most at the {queries} queries"] = jnp.sum(
            chunks < 0
        ) + jnp.sum(ends)
        wrong[f"{lengths_name}: rows are shorter than their own chunk of queries"] = jnp.sum(chunks > lengths)
    messages = list(wrong)
    counts = jnp.stack([jnp.asarray(count, jnp.int32) for count in wrong.values()])
    if isinstance(counts, jax.core.Tracer):
        jax.debug.callback(lambda found: _raise(messages, found), counts)
    else:
        _raise(messages, np.asarray(counts))
    return jnp.where(outside, 0, block_tables)


def _raise(messages: list[str], counts: np.ndarray) -> None:
    found = [f"{message} ({count} of them)" for message, count in zip(messages, counts, strict=True) if count]
    if found:
        raise ValueError("; ".join(found))
