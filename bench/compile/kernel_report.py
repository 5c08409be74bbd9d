"""What the compiler made of each kernel of a program: registers, spills, shared memory, threads.

XLA writes its kernels' PTX and its launch sequence to a folder, Mosaic GPU the PTX and the layout of its own; `ptxas`,
which the CUDA toolkit and JAX's CUDA extras bring, reports on PTX. Both read their settings when JAX is loaded:
`dump_to` first.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from pathlib import Path

from jaxserve.core.target import Target

_LAUNCH = re.compile(r"k\w*Kernel\s.*?\] (\S+) grid: \[[\d, ]+\] threads: \[([\d, ]+)\]\s+shared_memory: (\d+) bytes")
_COUNTED = re.compile(r"^ *\d+: (k\w+)", re.MULTILINE)
_ENTRY = re.compile(r"Compiling entry function '([^']+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")
_NOT_LAUNCHED = {"kWhile", "kConditional", "kAsyncStart", "kAsyncDone", "kCommandBuffer", "kSequential"}


@dataclass(frozen=True, slots=True)
class Kernel:
    """One compiled kernel; None where nothing says."""

    name: str
    registers: int | None = None
    """Of a thread."""
    spills: int | None = None
    """Bytes stored and loaded because registers ran out."""
    threads: int | None = None
    """Of a block."""
    shared: int | None = None
    """Bytes of shared memory of a block."""


@dataclass(frozen=True, slots=True)
class Dump:
    """What is to be had of a program from the two folders."""

    kernels: tuple[Kernel, ...]
    launches: int
    """Kernels and copies that one run launches; those inside a loop count once."""
    command_buffers: int | None


def dump_to(folder: Path) -> None:
    """Have every compilation of this process leave its kernels in `folder`. Before JAX is loaded."""
    flags = f"--xla_dump_to={folder / 'xla'} --xla_dump_emitter_re=.*ptx.*"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    os.environ |= {"MOSAIC_GPU_DUMP_TO": str(folder / "mosaic"), "MOSAIC_GPU_DUMP_PTX": "1"}
    for part in ("xla", "mosaic"):
        (folder / part).mkdir(parents=True, exist_ok=True)


@contextmanager
def without_disassembler_complaints() -> Iterator[None]:
    """Keep from standard error that Mosaic GPU, which dumps machine code too, finds no nvdisasm; all else stays."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile("w+", errors="replace") as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            caught.seek(0)
            noise = ("nvdisasm invocation failed", "=== Source Location Trace", "jaxlib/mosaic/gpu/dump.cc")
            sys.stderr.writelines(line for line in caught if line.strip() and not line.startswith(noise))


def take_dump(folder: Path, capability: tuple[int, int]) -> Dump:
    """What compilations have left in `folder` since the last call; the files are removed."""
    xla, mosaic = folder / "xla", folder / "mosaic"
    sequences = [path.read_text() for path in sorted(xla.glob("*thunk_sequence.txt"))]
    buffers = [path.read_text().count(" kCommandBuffer") for path in sorted(xla.glob("*after_thunk_passes.txt"))]
    launched = {name: (threads, shared) for text in sequences for name, threads, shared in _LAUNCH.findall(text)}
    found: list[Kernel] = []
    for path in sorted(xla.glob("*.ptx")):
        for kernel in _assemble(path.read_text(errors="replace"), capability):
            threads, shared = launched.get(kernel.name, ("0", "0"))
            found.append(replace(kernel, threads=_product(threads), shared=max(int(shared), kernel.shared or 0)))
    for path in sorted(mosaic.rglob("*.ptx")):
        text = path.read_text(errors="replace")
        threads = re.search(r"\.maxntid (\d+), (\d+), (\d+)", text)
        size = _product(", ".join(threads.groups())) if threads else None
        shared = _dynamic_shared(path)
        found += [replace(kernel, threads=size, shared=shared) for kernel in _assemble(text, capability)]
    launches = sum(kind not in _NOT_LAUNCHED for text in sequences for kind in _COUNTED.findall(text))
    for part in (xla, mosaic):
        for path in part.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return Dump(tuple(found), launches, sum(buffers) if buffers else None)


def blocks_per_core(kernel: Kernel, target: Target) -> int | None:
    """How many blocks of a kernel one multiprocessor holds at once (CUDA programming guide, occupancy)."""
    if not kernel.registers or not kernel.threads or kernel.shared is None:
        return None
    warps = -(-kernel.threads // 32)
    by_registers = target.registers // (-(-kernel.registers * 32 // 256) * 256 * warps)  # given out by 256 a warp
    by_shared = target.shared_memory // (kernel.shared + 1024)  # the driver keeps 1 KiB a block
    return min(by_registers, by_shared, target.threads // (warps * 32), 32)


def find_ptxas() -> str | None:
    """The path of `ptxas`: on PATH, in a CUDA toolkit, or where NVIDIA's Python packages put it."""
    found = shutil.which("ptxas") or shutil.which("ptxas", path="/usr/local/cuda/bin")
    packages = (path for root in sys.path if root for path in Path(root).glob("nvidia/*/bin/ptxas"))
    return found or next((str(path) for path in packages), None)


@cache
def _assemble(text: str, capability: tuple[int, int]) -> tuple[Kernel, ...]:
    """The kernels of a PTX text; without ptxas, their names alone."""
    names = re.findall(r"\.entry\s+([\w$]+)", text)
    ptxas = find_ptxas()
    if ptxas is None:
        return tuple(Kernel(name) for name in names)
    suffix = "a" if capability >= (9, 0) else ""
    command = [ptxas, "-v", "--gpu-name", f"sm_{capability[0]}{capability[1]}{suffix}", "-o", os.devnull, "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)
    return tuple(_parse(done.stderr.splitlines())) if not done.returncode else tuple(Kernel(name) for name in names)


def _parse(lines: Iterable[str]) -> Iterator[Kernel]:
    name, spills = "", 0
    for line in lines:
        if entry := _ENTRY.search(line):
            name, spills = entry[1], 0
        elif spilt := _SPILLS.search(line):
            spills = int(spilt[1]) + int(spilt[2])
        elif used := _USED.search(line):
            yield Kernel(name, int(used[1]), spills, shared=int(used[2] or 0))


def _dynamic_shared(ptx: Path) -> int | None:
    """Shared memory that a Mosaic GPU kernel is launched with, from its program as it lies beside the PTX."""
    program = ptx.with_suffix(".before_layout_inference.txt")
    found = re.search(r"dynamic_shared_memory_size %c(\d+)", program.read_text()) if program.exists() else None
    return int(found[1]) if found else None


def _product(text: str) -> int:
    return prod(int(part) for part in text.split(","))
