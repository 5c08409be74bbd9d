"""The interpreter's word is worth something: take a wait or a fence out of a kernel, and it is noticed.

And what the shared suite's small cases do not reach: rows split over programs, tiles smaller than a page.
"""

import types
from pathlib import Path

import jax
import numpy as np
import pytest

from kernels_pallas.paged_attention.cases import BARS, Case, draw, relative_error
from kernels_pallas.paged_attention.mosaic_gpu import decode as decode_kernel
from kernels_pallas.paged_attention.mosaic_gpu import prefill as prefill_kernel
from kernels_pallas.paged_attention.mosaic_gpu.splits import PROGRAMS, SHORTEST, choose_splits
from kernels_pallas.paged_attention.mosaic_gpu.tiles import DecodeTile, PrefillTile
from kernels_pallas.paged_attention.options import Options
from tests.kernels_pallas.backend_suite import SEED
from tests.kernels_pallas.interpreter import NEWEST, compiled_once, races_found

__all__ = ["compiled_once"]

FOLDER = Path(__file__).parents[2] / "kernels_pallas/paged_attention/mosaic_gpu"


def run(case: Case, kernel, **how) -> np.ndarray:
    """The output of a kernel module's function for a case."""
    given = case.options
    options = Options(case.problem.head_dim**-0.5, given["sliding_window"], given["soft_cap"], interpret=True)
    return np.asarray(jax.jit(lambda *a: kernel(*a, options, **how))(*case.arguments, given["sinks"]))


def check(case: Case, kernel, **how) -> None:
    error = relative_error(case, run(case, kernel, **how))
    print(f"{case}: relative error {error:.1e}")
    assert error <= BARS[case.problem.dtype] and not races_found()


@pytest.mark.slow
@pytest.mark.parametrize("splits", [2, 5])
def test_rows_split_over_programs(splits: int) -> None:
    case = draw("decode", SEED + splits, head_dim=64, dtype="float16", page_size=16, max_pages=24, rows=6, kv_heads=1)
    check(case, decode_kernel, splits=splits)


@pytest.mark.slow
def test_a_sink_counts_once_when_a_row_is_split() -> None:
    for seed in range(SEED, SEED + 50):
        case = draw("decode", seed, head_dim=64, dtype="bfloat16", page_size=64, max_pages=5, rows=5, kv_heads=1)
        if case.sinks is not None:
            return check(case, decode_kernel, splits=3)
    raise AssertionError("no case with sinks was drawn")


@pytest.mark.parametrize("kv_dtype", ["float16", pytest.param("float8_e4m3fn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["decode", "prefill"])
def test_a_window_that_sees_only_the_end_of_a_row(kind: str, kv_dtype: str) -> None:
    """The page is copied into the places of those before it as well, with the slots behind the row's end."""
    for seed in range(2000):
        case = draw(
            kind, seed, head_dim=64, dtype="float16", kv_dtype=kv_dtype, page_size=16, max_pages=2, rows=5, kv_heads=1,
            group=2,
        )  # fmt: skip
        rows = zip(case.lengths.tolist(), case.chunks.tolist(), strict=True)
        if case.sliding_window and any(n - c - case.sliding_window + 2 > 16 and n < 32 and c for n, c in rows):
            return check(case, {"decode": decode_kernel, "prefill": prefill_kernel}[kind])
    raise AssertionError("no such case was drawn")


def test_tiles_smaller_than_a_page() -> None:
    case = draw("decode", SEED, head_dim=64, dtype="bfloat16", page_size=128, rows=5, kv_heads=1)
    check(case, decode_kernel, tile=DecodeTile(64, 3))


def test_keys_and_values_of_8_bits_are_widened_together_where_tiles_are_short() -> None:
    case = draw(
        "decode", SEED, head_dim=256, dtype="bfloat16", kv_dtype="int8", group=4, rows=5, kv_heads=1, max_pages=2
    )
    check(case, decode_kernel, tile=DecodeTile(32, 3))


def test_few_long_rows_are_split_and_many_are_not() -> None:
    assert choose_splits(64, 8, 131072, 64) == 1
    assert choose_splits(1, 8, 131072, 64) == PROGRAMS // 8
    assert choose_splits(1, 8, 64 * SHORTEST * 2, 64) == 2
    assert choose_splits(1, 1, 16, 64) == 1


def without(name: str, line: str):
    """The kernel of a module from which a line is taken out."""
    source = (FOLDER / f"{name}.py").read_text()
    assert source.count(line) == 1, f"{name}.py has no single {line!r}"
    module = types.ModuleType(f"{name}_without")
    indent = source[: source.index(line)].rpartition("\n")[2]
    assert not indent.strip()
    exec(compile(source.replace(line, "pass"), f"{name}_without.py", "exec"), module.__dict__)
    return getattr(module, name)


MUTANTS = {
    "a slot is refilled without a fence": (
        "decode", "plgpu.commit_smem()  # the slot to be refilled was read a step ago, by all four warps",
    ),
    "keys are read before they are there": ("decode", "plgpu.barrier_wait(ready.k.at[slot])"),
    "8-bit pages are read before they are there": ("decode", "plgpu.barrier_wait(ready.at[slot])"),
    "values behind a row's end are not cleared": (
        "decode", "clear(ops, values, end - at * tokens + keys, seen_from, keys)",
    ),
    "values are read before another has cleared them": (
        "prefill", "pl.when(warpgroup == 1)(lambda: plgpu.barrier_wait(cleared))",
    ),
    "queries are read before they are there": ("decode", "plgpu.barrier_wait(q_ready)"),
    "a slot is refilled that is not free": ("prefill", "wait_free(at, ring.free.at[slot])  # before the copy"),
    "values are read before they are there": ("prefill", "plgpu.barrier_wait(v.ready.at[slot])"),
    "arrivals are left unseen": ("prefill", "plgpu.barrier_wait(v.free.at[slot])"),
    "the output is stored without a fence": ("prefill", "plgpu.commit_smem()  # before it is copied out"),
}  # fmt: skip


def noticed(case: Case, kernel, tile) -> bool:
    try:
        found = run(case, kernel, tile=tile)
    except Exception:  # what the interpreter raises for a barrier's misuse is no class of its own
        return True
    return races_found() or relative_error(case, found) > BARS[case.problem.dtype]


@pytest.mark.slow
@pytest.mark.skipif(not NEWEST, reason="the race detector knows fences and stores from JAX 0.11")
@pytest.mark.parametrize("what", MUTANTS)
def test_a_missing_wait_or_fence_is_noticed(what: str) -> None:
    if what == "arrivals are left unseen" and jax.__version_info__ >= (0, 12):
        pytest.skip("the interpreter of JAX 0.12 lets a barrier complete again before anybody has seen that it had")
    name, line = MUTANTS[what]
    # a page and a token: three tiles of 64 in a ring of two
    case = draw(
        name,
        7,
        head_dim=64,
        dtype="bfloat16",
        kv_dtype="int8" if "8-bit" in what else None,
        group=1,
        page_size=128,
        max_pages=2,
        rows=5,
        kv_heads=1,
        plain=True,
    )
    whole, tile = {"decode": (decode_kernel, DecodeTile(64, 2)), "prefill": (prefill_kernel, PrefillTile(64, 2))}[name]
    assert not noticed(case, whole, tile)
    assert noticed(case, without(name, line), tile)
