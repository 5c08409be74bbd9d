"""What the compiler's dump says of kernels, and how many fit on a multiprocessor."""

import os
from pathlib import Path

import pytest

from bench.compile import kernel_report
from bench.compile.kernel_report import Kernel, blocks_per_core, take_dump
from jaxserve.core.target import find_target

PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'paged_decode' for 'sm_90a'
ptxas info    : Function properties for paged_decode
    8 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 158 registers, used 2 barriers, 2048 bytes smem
ptxas info    : Compiling entry function 'loop_add' for 'sm_90a'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers
"""
THUNKS = """\
001: kCopy         [source       | next=002 (1)] kCopy
002: kWhile        [prev=001 (1) | next=003 (1)] kWhile
    001: kCustomKernel [prev=001 (1) | next=004 (1)] paged_decode grid: [64, 8, 1] threads: [128, 2, 1]  shared_memory: 65536 bytes
003: kCustomKernel [prev=003 (1) | sink        ] loop_add grid: [1, 1, 1] threads: [32, 1, 1]  shared_memory: 0 bytes
"""  # noqa: E501


def test_ptxas_output() -> None:
    assert list(kernel_report._parse(PTXAS.splitlines())) == [
        Kernel("paged_decode", 158, 32, shared=2048), Kernel("loop_add", 10, 0, shared=0)
    ]  # fmt: skip


def test_a_dump_is_read_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_report, "find_ptxas", lambda: None)
    kernel_report._assemble.cache_clear()
    (tmp_path / "xla").mkdir()
    (tmp_path / "mosaic").mkdir()
    (tmp_path / "xla" / "m.1.ptx").write_text(".visible .entry paged_decode(\n")
    (tmp_path / "xla" / "m.thunk_sequence.txt").write_text(THUNKS)
    (tmp_path / "xla" / "m.thunk_sequence_after_thunk_passes.txt").write_text("000: kCommandBuffer [source\n" * 3)
    (tmp_path / "mosaic" / "kernel_0.ptx").write_text(".entry mosaic_gpu_kernel(\n.maxntid 384, 1, 1\n")
    (tmp_path / "mosaic" / "kernel_0.before_layout_inference.txt").write_text("dynamic_shared_memory_size %c116792_i32")
    dump = take_dump(tmp_path, (9, 0))
    assert dump.kernels == (
        Kernel("paged_decode", threads=256, shared=65_536), Kernel("mosaic_gpu_kernel", threads=384, shared=116_792)
    )  # fmt: skip
    assert (dump.launches, dump.command_buffers) == (3, 3)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("registers", "shared", "blocks"), [(110, 39, 4), (232, 184, 1), (32, 4, 16), (64, 0, 8)])
def test_blocks_on_an_h200(registers: int, shared: int, blocks: int) -> None:
    kernel = Kernel("k", registers, 0, threads=128, shared=shared * 1024)
    assert blocks_per_core(kernel, find_target("h200")) == blocks


def test_only_complaints_about_a_missing_disassembler_are_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    with kernel_report.without_disassembler_complaints():
        os.write(2, b"nvdisasm invocation failed: INTERNAL: no such file\n=== Source Location Trace: ===\n")
        os.write(2, b"jaxlib/mosaic/gpu/dump.cc:134\n\na warning\n")
    assert capfd.readouterr().err == "a warning\n"
