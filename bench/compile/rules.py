"""What is wrong with a compiled program: the rules by which `bench.compile` fails.

A decode kernel keeps the memory busy when the shared memory of the blocks
that fit on one multiprocessor holds at least what the memory delivers in a microsecond, and when they are at least two,
so that one block's beginning and end hide behind another's middle. Prefill keeps the matrix units busy when two
warpgroups that compute are on a multiprocessor, in one block or several, of which one multiplies while the other
weighs; the warpgroup that feeds them does not count.
"""

from collections.abc import Iterator

from bench.compile.kernel_report import Kernel, blocks_per_core
from bench.compile.program_report import ProgramReport
from jaxserve.core.target import Target

LATENCY_S = 1e-6
COMPUTING_THREADS = 256
"""Of prefill on one multiprocessor: two warpgroups, or eight warps, at least."""
FEEDING_THREADS = {"mosaic_gpu": 128}
"""Of a block of a backend's prefill kernel: the producer, which computes nothing."""
ONE_WARPGROUP = "one computing warpgroup an SM hides no softmax: two would spill (docs/kernels.md)"
KNOWN = {("mosaic_gpu", 256, 1): ONE_WARPGROUP}
"""By backend, head dimension and bytes of a page's number: prefill kernels known to be too few, and why. They are
printed as such; all others fail."""


def program_problems(report: ProgramReport, cache_bytes: int, limit: int | None) -> Iterator[str]:
    """A cache that is not wholly aliased, or is copied; temporaries above a limit."""
    if report.aliased < cache_bytes:
        yield f"{report.aliased} of the cache's {cache_bytes} bytes are aliased"
    if report.cache_copies:
        yield f"makes {len(report.cache_copies)} arrays as large as a cache's: {', '.join(report.cache_copies[:3])}"
    if limit is not None and report.temporaries > limit:
        yield f"temporaries {report.temporaries / 2**20:.0f} MiB, more than {limit / 2**20:.0f}"


def kernel_problems(
    attention: list[Kernel], backend: str, kind: str, target: Target, *, known: bool = False
) -> Iterator[str]:
    """Of the program of one attention call (`kind` "decode" or "prefill") or of a step: spills, too few blocks.

    Nothing is taken for right that the dump does not say. `known`: prefill's computing threads are not counted.
    """
    if not attention and backend in ("mosaic_gpu", "triton"):
        yield f"the dump has no attention kernel of {backend}"
    needed = target.bandwidth * LATENCY_S / target.cores
    for kernel in attention:
        if kernel.registers is None:
            yield f"{kernel.name}: ptxas does not take its PTX"
            continue
        if kernel.spills is None or kernel.spills:
            yield f"{kernel.name} spills {kernel.spills} bytes"
        blocks = blocks_per_core(kernel, target)
        if blocks is None or kernel.shared is None or kernel.threads is None:
            yield f"{kernel.name}: the dump does not say its threads and shared memory"
            continue
        if blocks < 1:
            yield f"{kernel.name}: a multiprocessor does not hold one block"
        if kind == "decode" and (blocks < 2 or blocks * kernel.shared < needed):
            yield (
                f"{kernel.name}: {blocks} blocks of {kernel.shared / 1024:.0f} KiB an SM, too few to keep "
                f"{needed / 1024:.0f} KiB in flight"
            )
        computing = kernel.threads - FEEDING_THREADS.get(backend, 0)
        if kind == "prefill" and not known and blocks * computing < COMPUTING_THREADS:
            yield (
                f"{kernel.name}: {blocks} blocks of {computing} computing threads an SM, fewer than the "
                f"{COMPUTING_THREADS} with which one's softmax hides behind another's product"
            )
