"""The drawn cases have what they promise, and their measure of error finds what is wrong."""

import numpy as np
import pytest

from kernels_pallas.paged_attention.cases import BARS, Case, draw, expected, relative_error

KINDS = ["decode", "prefill"]


def small(kind: str, seed: int = 5, **more: object) -> Case:
    return draw(kind, seed, **{"head_dim": 64, "dtype": "bfloat16", "page_size": 16, "group": 2, "rows": 5} | more)


def by_the_definition(case: Case) -> np.ndarray:
    """One query, one head at a time: softmax over what it sees, sinks beside it."""
    out = np.zeros(case.q.shape)
    size, group = case.problem.page_size, case.problem.group
    rows = enumerate(zip(case.lengths, case.chunks, strict=True))
    queries = [(row, length - chunk + i) for row, (length, chunk) in rows for i in range(chunk)]
    for index, (row, position) in enumerate(queries):
        first = max(0, position + 1 - (case.sliding_window or position + 1))
        at = np.arange(first, position + 1)
        pages, offsets = case.tables[row][at // size], at % size
        query = row if case.kind == "decode" else index
        for head in range(case.q.shape[1]):
            keys, values = (
                x[pages, head // group, offsets].astype(np.float64)
                * (1.0 if s is None else s[pages, head // group, None].astype(np.float64))
                for x, s in ((case.pages.keys, case.pages.key_scales), (case.pages.values, case.pages.value_scales))
            )
            scores = keys @ case.q[query, head].astype(np.float64) / np.sqrt(case.problem.head_dim)
            if case.soft_cap is not None:
                scores = case.soft_cap * np.tanh(scores / case.soft_cap)
            sink = 0.0 if case.sinks is None else np.exp(np.float64(case.sinks[head]))
            out[query, head] = np.exp(scores) @ values / (np.exp(scores).sum() + sink)
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kv_dtype", [None, "int8", "float8_e4m3fn"])
def test_the_answer_is_the_definition_s(kind: str, kv_dtype: str | None) -> None:
    seen = set()
    for seed in range(12):
        case = small(kind, seed, kv_dtype=kv_dtype)
        seen |= {name for name in ("sinks", "sliding_window", "soft_cap") if getattr(case, name) is not None}
        np.testing.assert_allclose(expected(case), by_the_definition(case), rtol=1e-9, atol=1e-12)
    assert seen == {"sinks", "sliding_window", "soft_cap"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kv_dtype", [None, "int8", "float8_e4m3fn"])
def test_rows_pages_and_poison_are_as_promised(kind: str, kv_dtype: str | None) -> None:
    case = small(kind, kv_dtype=kv_dtype, max_pages=20, long_row=True)
    assert {0, 1, 15, 16, 17} < set(case.lengths) and 305 <= case.lengths.max() < 320
    row, used = case.lengths.argmax(), np.unique(case.tables)
    assert len(set(case.tables[row])) == 19, "a page is repeated"
    first = case.tables[case.lengths > 0, 0]
    assert np.all(first == first[0]), "the first page is shared"
    held = np.zeros((len(case.pages.keys), 16), bool)
    for table, length in zip(case.tables, case.lengths, strict=True):
        for at in range(length):
            held[table[at // 16], at % 16] = True
    ends = [table[length // 16] for table, length in zip(case.tables, case.lengths, strict=True) if length % 16]
    assert any(not held[page].all() for page in ends), "slots behind a row's end in its own page"
    assert not held[0].any() and len(held) > len(used)
    for pages, scales in ((case.pages.keys, case.pages.key_scales), (case.pages.values, case.pages.value_scales)):
        finite = np.isfinite(pages.astype(np.float32)).all(axis=(1, 3))
        np.testing.assert_array_equal(finite, held | (kv_dtype == "int8"))
        if scales is not None:
            np.testing.assert_array_equal(np.isfinite(scales), np.repeat(held.any(axis=1)[:, None], 2, axis=1))
    if kind == "prefill":
        assert case.chunks[row] == case.lengths[row]


def test_every_group_is_drawn() -> None:
    drawn = {
        draw("decode", seed, head_dim=64, dtype="bfloat16", rows=5, page_size=16).problem.group for seed in range(200)
    }
    assert drawn == set(range(1, 17))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wrong_is_found(kind: str) -> None:
    case = small(kind)
    answer, bar = expected(case), BARS["bfloat16"]
    assert relative_error(case, answer) == 0.0
    real = int(np.flatnonzero(case.lengths)[0]) if kind == "decode" else 0
    for wrong, least in ((answer[real] * 1.02, bar), (np.zeros_like(answer[real]), bar), (np.nan, np.inf)):
        found = answer.copy()
        found[real] = wrong
        assert relative_error(case, found) > bar and relative_error(case, found) >= least
    if kind == "decode":
        found = answer.copy()
        found[case.lengths.argmin()] = 1e-6
        assert relative_error(case, found) == np.inf, "a row of length 0 yields zeros"
