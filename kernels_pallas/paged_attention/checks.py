"""What can be wrong with the arguments of an attention call.

Shapes, types and options are looked at on every call, before anything is launched. The contents of tables and lengths
are not: the host side, which made them, has checked them. With `debug` they are looked at too, also inside a jitted
program: there the device counts what is wrong, reads page 0 instead of a page that does not exist, and the program
fails with the argument's name.
"""

from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas.paged_attention.options import FLOATS, QUANTISED, Options, Problem
from kernels_pallas.pages import Pages


def check_shapes(
    q: jax.Array,
    pages: Pages,
    tables: jax.Array,
    sinks: jax.Array | None,
) -> Problem:
    """The problem that the arguments pose. ValueError or TypeError names the one that does not fit."""
    _expect_array("q", q, "[rows, N, H]")
    if not isinstance(pages, Pages):
        raise TypeError(f"pages must be kernels_pallas.pages.Pages, not {type(pages).__name__}")
    keys, values = pages.keys, pages.values
    _expect_array("pages.keys", keys, "[P, K, S, H]")
    _expect_array("pages.values", values, "[P, K, S, H]")
    _expect_array("tables", tables, "[rows, W]")
    if values.shape != keys.shape or values.dtype != keys.dtype:
        raise ValueError(
            f"pages.values {values.shape} {values.dtype} must be like pages.keys {keys.shape} {keys.dtype}"
        )
    heads, kv_heads = q.shape[1], keys.shape[1]
    if q.shape[2] != keys.shape[3]:
        raise ValueError(f"q has head dimension {q.shape[2]}, pages.keys {keys.shape[3]}")
    if heads % kv_heads:
        raise ValueError(f"q has {heads} heads: expected a multiple of the {kv_heads} of pages.keys")
    if q.dtype.name not in FLOATS or keys.dtype.name not in (q.dtype.name, *QUANTISED):
        raise TypeError(
            f"q ({q.dtype}) must be {', '.join(FLOATS[:-1])} or {FLOATS[-1]}, and pages.keys ({keys.dtype}) must have "
            f"one floating type with it, or be {' or '.join(QUANTISED)}"
        )
    if tables.dtype != jnp.int32:
        raise TypeError(f"tables must be [rows, W] int32, not {tables.shape} {tables.dtype}")
    if sinks is not None:
        _expect_array("sinks", sinks, "[N]")
        if sinks.shape != (heads,) or sinks.dtype.name not in FLOATS:
            raise ValueError(
                f"sinks must be [N] = [{heads}] of {', '.join(FLOATS[:-1])} or {FLOATS[-1]}, not {sinks.shape} "
                f"{sinks.dtype}"
            )
    problem = Problem(q.shape[2], heads // kv_heads, keys.shape[2], q.dtype.name, keys.dtype.name)
    for name, scales in (("pages.key_scales", pages.key_scales), ("pages.value_scales", pages.value_scales)):
        if (scales is not None) != problem.quantised:
            wanted = "needed for" if problem.quantised else "given, and there are none for"
            raise ValueError(f"{name} are {wanted} pages of {problem.kv_dtype}")
        if scales is None:
            continue
        _expect_array(name, scales, "[P, K]")
        if scales.shape != keys.shape[:2] or scales.dtype != jnp.float32:
            raise ValueError(f"{name} must be [P, K] = {keys.shape[:2]} float32, not {scales.shape} {scales.dtype}")
    return problem


def check_options(head_dim: int, scale: Any, sliding_window: Any, soft_cap: Any, interpret: bool) -> Options:
    """The options. ValueError or TypeError names the one that is out of range, or no number that is known now."""
    if scale is not None and not (_is_a("scale", scale, Real) and np.isfinite(scale)):
        raise ValueError(f"scale = {scale} must be finite")
    if sliding_window is not None:
        _is_a("sliding_window", sliding_window, Integral)
        if not 1 <= sliding_window < 1 << 31:
            raise ValueError(f"sliding_window = {sliding_window} must be from 1 to {(1 << 31) - 1}, or None")
    if soft_cap is not None and not (_is_a("soft_cap", soft_cap, Real) and 0 < soft_cap < np.inf):
        raise ValueError(f"soft_cap = {soft_cap} must be positive and finite, or None")
    return Options(
        head_dim**-0.5 if scale is None else float(scale),
        None if sliding_window is None else int(sliding_window),
        None if soft_cap is None else float(soft_cap),
        interpret,
    )


def expect(name: str, array: jax.Array, shape: tuple[int, ...]) -> None:
    _expect_array(name, array, None)
    if array.shape != shape or array.dtype != jnp.int32:
        raise ValueError(f"{name} must be {list(shape)} int32, not {list(array.shape)} {array.dtype}")


def _expect_array(name: str, value: Any, axes: str | None) -> None:
    """An array with the dimensions that `axes` names, none of them empty."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise TypeError(f"{name} must be an array{f' {axes}' if axes else ''}, not {type(value).__name__}")
    if axes is None:
        return
    if len(value.shape) != axes.count(",") + 1:
        raise ValueError(f"{name} must be {axes}, not {list(value.shape)}")
    if 0 in value.shape:
        raise ValueError(f"{name} {axes} must have something in every dimension, not {list(value.shape)}")


def _is_a(name: str, value: Any, kind: type) -> bool:
    """True, or TypeError: a traced array is no number yet, and True and False are none that anybody means."""
    if not isinstance(value, kind) or isinstance(value, bool):
        what = "a whole number" if kind is Integral else "a number"
        raise TypeError(f"{name} must be {what}, known when the program is traced, not {type(value).__name__}")
    return True


def check_contents(
    pages: Pages,
    tables: jax.Array,  # [R, W]
    lengths_name: str,
    lengths: jax.Array,  # [R] tokens in the cache
    offsets: jax.Array | None = None,  # [R + 1]
    queries: int = 0,
) -> jax.Array:
    """The tables, with page 0 where they name a page that does not exist.

    ValueError names what is wrong; inside a jitted program it comes as JAX's runtime error, when the program has run.
    """
    count, _, size, _ = pages.keys.shape
    width = tables.shape[1]
    used = jnp.arange(width, dtype=jnp.int32)[None] * size < lengths[:, None]
    outside = (tables < 0) | (tables >= count)
    wrong = {
        f"tables: entries that are read name no page from 0 to {count - 1}": jnp.sum(outside & used),
        f"{lengths_name}: rows are below 0 or above the {width * size} tokens that a table's {width} pages hold":
            jnp.sum((lengths < 0) | (lengths > width * size)),
    }  # fmt: skip
    if offsets is not None:
        chunks = offsets[1:] - offsets[:-1]
        ends = jnp.stack([offsets[0] != 0, offsets[-1] > queries])
        wrong[f"offsets: do not start at 0, grow, and end at most at the {queries} queries"] = jnp.sum(
            chunks < 0
        ) + jnp.sum(ends)
        wrong[f"{lengths_name}: rows are shorter than their own chunk of queries"] = jnp.sum(chunks > lengths)
    messages = list(wrong)
    counts = jnp.stack([jnp.asarray(found, jnp.int32) for found in wrong.values()])
    if isinstance(counts, jax.core.Tracer):
        jax.debug.callback(lambda found: _raise(messages, found), counts)
    else:
        _raise(messages, np.asarray(counts))
    return jnp.where(outside, 0, tables)


def _raise(messages: list[str], counts: np.ndarray) -> None:
    found = [f"{message} ({count} of them)" for message, count in zip(messages, counts, strict=True) if count]
    if found:
        raise ValueError("; ".join(found))
