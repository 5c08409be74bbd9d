"""Random attention problems and their answers in float64: what the backends' test suite and `bench.gpu` share.

A case is drawn from a seed. Its rows have the lengths at which kernels break (0, 1, one below, at and above a page
edge) and some in between; their pages are scattered over the pool, the first page is shared by all rows, and one row
repeats a page. Slots that are no row's hold NaN and infinities: those behind the end of a row in its own last page, and
all of the pages in no table and of page 0, to which table padding points. The scales of these pages are NaN or infinite
too; int8 has nothing else that is not finite.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from kernels_pallas.paged_attention.options import QUANTISED, Problem
from kernels_pallas.pages import Pages

BARS = {"bfloat16": 1e-2, "float16": 2e-3, "float32": 2e-5}
"""Largest relative error of a row of the output, against float64."""

Floats = NDArray[np.floating]
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Case:
    """One problem: the arguments as NumPy arrays, and the options."""

    kind: str
    problem: Problem
    seed: int
    pages: Pages  # of NumPy arrays
    tables: Ints  # [R, W]
    lengths: Ints  # [R] tokens in the cache
    chunks: Ints  # [R] queries of each row, its last tokens; ones, but for length 0, when decoding
    q: NDArray  # [T, N, H]; rows beyond the chunks are padding
    sinks: NDArray[np.float32] | None  # [N]
    sliding_window: int | None
    soft_cap: float | None

    def __str__(self) -> str:
        p, kv_heads = self.problem, self.pages.keys.shape[1]
        return (
            f"{self.kind}, seed {self.seed}: H {p.head_dim}, G {p.group}, K {kv_heads}, S {p.page_size}, "
            f"{p.dtype} on {p.kv_dtype} pages, window {self.sliding_window}, cap {self.soft_cap}, "
            f"sinks {self.sinks is not None}, lengths {self.lengths.tolist()}, chunks {self.chunks.tolist()}"
        )

    @property
    def offsets(self) -> Ints:  # [R + 1]
        return np.concatenate([[0], np.cumsum(self.chunks)]).astype(np.int32)

    @property
    def options(self) -> dict:
        """The keyword arguments of `decode` and `prefill` that belong to the case."""
        sinks = None if self.sinks is None else jnp.asarray(self.sinks)
        return {"sinks": sinks, "sliding_window": self.sliding_window, "soft_cap": self.soft_cap}

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The positional arguments of `decode` or `prefill`, as JAX's arrays."""
        where = (self.lengths,) if self.kind == "decode" else (self.offsets, self.lengths)
        return jax.tree.map(jnp.asarray, (self.q, self.pages, self.tables, *where))


def draw(
    kind: str,
    seed: int,
    *,
    head_dim: int,
    dtype: str,
    kv_dtype: str | None = None,
    group: int | None = None,
    page_size: int | None = None,
    max_pages: int = 3,
    rows: int = 8,
    kv_heads: int = 2,
    plain: bool = False,
    long_row: bool = False,
) -> Case:
    """A case of `kind` "decode" or "prefill"; what is not given is drawn. `plain`: no window, cap or sinks.

    `max_pages` of the drawn page size bound a row's length; `rows` is at least 5. Five rows are those of the edges, of
    two pages at most; `long_row` adds one that fills its last page in part, repeats a page, and is a whole chunk in a
    prefill.
    """
    rng = np.random.default_rng(seed)
    group = group or int(rng.integers(1, 17))
    size = page_size or int(rng.choice([16, 32, 64, 128]))
    problem = Problem(head_dim, group, size, dtype, kv_dtype or dtype)
    longest = max_pages * size
    lengths = np.array([0, 1, size - 1, size, size + 1, *rng.integers(1, longest + 1, rows - 5)], np.int32)
    if long_row:
        lengths = np.append(lengths, np.int32(longest - rng.integers(1, size)))
        rows += 1
    rng.shuffle(lengths)
    chunks = np.minimum(lengths, 1).astype(np.int32)
    if kind == "prefill":
        whole = (rng.random(rows) < 0.4) | (long_row & (lengths == lengths.max()))
        chunks = np.where(whole, lengths, rng.integers(0, lengths + 1)).astype(np.int32)
    tables, pages = _tables(rng, lengths, size, max_pages)
    if long_row:
        tables[lengths.argmax(), -1] = tables[lengths.argmax(), 1]
    queries = rows if kind == "decode" else int(chunks.sum()) + int(rng.integers(0, 20))
    q = rng.standard_normal((max(queries, 1), kv_heads * group, head_dim)).astype(_type(dtype))
    held = _held(tables, lengths, pages, size)
    keys, key_scales = _pages(rng, (pages, kv_heads, size, head_dim), problem, held)
    values, value_scales = _pages(rng, (pages, kv_heads, size, head_dim), problem, held)
    window = int(rng.choice([1, size - 1, size, size + 3, 2 * size])) if rng.random() < 0.4 else None
    return Case(
        kind, problem, seed, Pages(keys, values, key_scales, value_scales), tables, lengths, chunks, q,
        sinks=None if plain or rng.random() < 0.6 else rng.standard_normal(kv_heads * group).astype(np.float32),
        sliding_window=None if plain else window,
        soft_cap=None if plain or rng.random() < 0.6 else float(rng.uniform(2.0, 30.0)),
    )  # fmt: skip


def expected(case: Case) -> Floats:  # [T, N, H]
    """The answer in float64, zeros for padding rows and queries."""
    out = np.zeros(case.q.shape)
    k = _numbers(case.pages.keys, case.pages.key_scales)
    v = _numbers(case.pages.values, case.pages.value_scales)
    for row, (length, chunk, offset) in enumerate(zip(case.lengths, case.chunks, case.offsets, strict=False)):
        if chunk:
            at = slice(row, row + 1) if case.kind == "decode" else slice(offset, offset + chunk)
            used = case.tables[row, : -(-length // case.problem.page_size)]
            out[at] = _row(case, case.q[at].astype(np.float64), k(used)[:, :length], v(used)[:, :length])
    return out


def relative_error(case: Case, found: NDArray) -> float:
    """The largest over the rows of |found - expected| / |expected|.

    Infinite where `found` is not finite, padding included, or where zeros are expected and missed. A query that is
    padding in a prefill may be anything finite.
    """
    answer, found = expected(case), found.astype(np.float64)
    if not np.isfinite(found).all():
        return float("inf")
    real = len(answer) if case.kind == "decode" else case.offsets[-1]
    if not real:
        return 0.0
    wrong = np.linalg.norm((found - answer)[:real].reshape(real, -1), axis=1)
    size = np.linalg.norm(answer[:real].reshape(real, -1), axis=1)
    with np.errstate(divide="ignore"):
        return float(np.where(size > 0, wrong / np.maximum(size, 1e-300), np.where(wrong > 0, np.inf, 0.0)).max())


def _row(case: Case, q: Floats, k: Floats, v: Floats) -> Floats:  # q [C, N, H], k and v [K, L, H] -> [C, N, H]
    chunk, heads, head_dim = q.shape
    kv_heads, length, _ = k.shape
    group = heads // kv_heads
    # matmul, not einsum, which takes a minute for a thousand queries of 64 heads
    queries = q.reshape(chunk, kv_heads, group, head_dim).transpose(1, 2, 0, 3).reshape(kv_heads, -1, head_dim)
    scores = (queries @ k.transpose(0, 2, 1)).reshape(kv_heads, group, chunk, length) * head_dim**-0.5
    if case.soft_cap is not None:
        scores = case.soft_cap * np.tanh(scores / case.soft_cap)
    position, at = np.arange(length - chunk, length)[:, None], np.arange(length)
    seen = (at <= position) & (at > position - (case.sliding_window or length + 1))
    scores = np.where(seen, scores, -np.inf)
    peak = scores.max(axis=-1, keepdims=True)
    if case.sinks is not None:
        sinks = case.sinks.astype(np.float64).reshape(kv_heads, -1, 1, 1)
        peak = np.maximum(peak, sinks)
    weights = np.exp(scores - peak)
    total = weights.sum(axis=-1, keepdims=True)
    if case.sinks is not None:
        total = total + np.exp(sinks - peak)
    out = (weights / total).reshape(kv_heads, group * chunk, length) @ v
    return out.reshape(kv_heads, group, chunk, head_dim).transpose(2, 0, 1, 3).reshape(chunk, heads, head_dim)


def _numbers(pages: NDArray, scales: NDArray[np.float32] | None):
    """`used pages -> [K, tokens, H]` in float64."""

    def gather(used: Ints) -> Floats:
        taken = pages[used].astype(np.float64)  # [p, K, S, H]
        if scales is not None:
            taken = taken * scales[used].astype(np.float64)[:, :, None, None]
        return taken.transpose(1, 0, 2, 3).reshape(taken.shape[1], -1, taken.shape[3])

    return gather


def _tables(rng: np.random.Generator, lengths: Ints, size: int, width: int) -> tuple[Ints, int]:
    """Scattered pages, the first of every row page 1; one row in three repeats a page. (tables, pages in the pool)."""
    pages = len(lengths) * width + 6
    ids = iter(rng.permutation(np.arange(2, pages)))
    tables = np.zeros((len(lengths), width), np.int32)
    for row, length in enumerate(lengths):
        count = -(-length // size)
        tables[row, :count] = [1 if i == 0 else next(ids) for i in range(count)]
        if count > 2 and rng.random() < 0.33:
            tables[row, count - 1] = tables[row, 1]
    return tables, pages


def _held(tables: Ints, lengths: Ints, pages: int, size: int) -> NDArray[np.bool_]:  # [P, S]
    """Which slots hold a row's token."""
    held = np.zeros((pages, size), bool)
    for table, length in zip(tables, lengths, strict=True):
        at = np.arange(length)
        held[table[at // size], at % size] = True
    return held


def _pages(
    rng: np.random.Generator, shape: tuple[int, ...], problem: Problem, held: NDArray[np.bool_]
) -> tuple[NDArray, NDArray[np.float32] | None]:
    """Random pages in their type, and their scales; what is no row's is not finite."""
    values, scales, (chance,) = rng.standard_normal(shape), None, rng.spawn(1)
    poison = np.array([np.nan, np.inf, -np.inf])
    if problem.quantised:
        scales, unused = rng.uniform(0.3, 1.5, shape[:2]).astype(np.float32), ~held.any(axis=1)
        scales[unused] = chance.choice(poison, (unused.sum(), shape[1]))
        if problem.kv_dtype == "int8":
            return np.clip(np.rint(values * 40), -127, 127).astype(np.int8), scales / np.float32(40)
    others = np.broadcast_to(~held[:, None, :, None], shape)
    values[others] = chance.choice(poison, others.sum())
    return values.astype(_type(problem.kv_dtype)), scales


def _type(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name)) if name in ("bfloat16", QUANTISED[0]) else np.dtype(name)
