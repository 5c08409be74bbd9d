"""Each reason for which `bench.compile` fails, planted one at a time; and that it exits with 1 for it."""

from dataclasses import replace

import pytest

from bench.compile.kernel_report import Kernel
from bench.compile.program_report import ProgramReport
from bench.compile.rules import KNOWN, kernel_problems, program_problems
from jaxserve.core.target import find_target
from kernels_pallas.paged_attention.mosaic_gpu.tile_table import PREFILL

H200 = find_target("h200")
PROGRAM = ProgramReport("step", 1.0, 1.0, arguments=1 << 31, aliased=1 << 30, temporaries=1 << 20, outputs=0)
DECODE = Kernel("paged_decode", registers=128, spills=0, threads=128, shared=82 << 10)
PREFILL_KERNEL = Kernel("paged_prefill", registers=168, spills=0, threads=384, shared=194 << 10)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({}, None),
        ({"aliased": (1 << 30) - 1}, "1073741823 of the cache's 1073741824 bytes are aliased"),
        ({"cache_copies": ("copy.3: copy",)}, "makes 1 arrays as large as a cache's: copy.3"),
        ({"temporaries": (1 << 21) + 1}, "temporaries 2 MiB, more than 2"),
    ],
)
def test_what_is_wrong_with_a_program(fault: dict, words: str | None) -> None:
    found = list(program_problems(replace(PROGRAM, **fault), 1 << 30, 1 << 21))
    assert (words is None and not found) or (len(found) == 1 and words is not None and words in found[0])


@pytest.mark.parametrize(
    ("kind", "fault", "words"),
    [
        ("decode", {}, None), ("prefill", {}, None), ("", {}, None),
        ("decode", {"spills": 8}, "spills 8 bytes"), ("prefill", {"spills": 8}, "spills 8 bytes"),
        ("", {"spills": 8}, "spills 8 bytes"), ("decode", {"spills": None}, "spills None"),
        ("decode", {"registers": None}, "ptxas does not take its PTX"),
        ("decode", {"shared": 180 << 10}, "1 blocks of 180 KiB an SM"),
        ("decode", {"shared": 1 << 10, "registers": 255}, "too few to keep 36 KiB in flight"),
        ("decode", {"shared": None}, "does not say"), ("decode", {"threads": 0}, "does not say"),
        ("prefill", {"threads": 256}, "1 blocks of 128 computing threads"),
        ("", {"shared": 300 << 10}, "does not hold one block"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_kernel(kind: str, fault: dict, words: str | None) -> None:
    kernel = replace(PREFILL_KERNEL if kind == "prefill" else DECODE, **fault)
    found = list(kernel_problems([kernel], "mosaic_gpu", kind, H200))
    assert (words is None and not found) or (len(found) == 1 and words is not None and words in found[0])


@pytest.mark.parametrize("backend", ["mosaic_gpu", "triton"])
def test_a_dump_without_the_kernel_is_no_proof(backend: str) -> None:
    assert list(kernel_problems([], backend, "decode", H200)) == [f"the dump has no attention kernel of {backend}"]
    assert not list(kernel_problems([], "reference", "decode", H200))


def test_what_is_known_is_what_the_table_has() -> None:
    """The list of the known is that of the tiles with one computing warpgroup, and excuses nothing else."""
    assert set(KNOWN) == {("mosaic_gpu", *key) for key, (_, _, computing) in PREFILL.items() if computing < 2}
    few = replace(PREFILL_KERNEL, threads=256)
    assert not list(kernel_problems([few], "mosaic_gpu", "prefill", H200, known=True))
    assert list(kernel_problems([replace(few, spills=4)], "mosaic_gpu", "prefill", H200, known=True))


def test_eight_warps_of_triton_all_compute() -> None:
    kernel = Kernel("paged_prefill", registers=128, spills=0, threads=256, shared=64 << 10)
    assert not list(kernel_problems([kernel], "triton", "prefill", find_target("a100")))
