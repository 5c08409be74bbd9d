"""Paged attention in Pallas Mosaic GPU, for NVIDIA Hopper: see docs/kernels.md for the data's way and the arithmetic.

decode, prefill     the two kernels
pages, ragged       which pages a tile of tokens is, which queries a tile of rows
softmax, splits     the online softmax; joining what several programs found of one row
tiles               sizes, chosen by what the compiler makes of them
operations          what the interpreter lacks, and its plain form
launch, widths      how kernels are started, and types widened
"""

from kernels_pallas.paged_attention.mosaic_gpu.decode import decode
from kernels_pallas.paged_attention.mosaic_gpu.prefill import prefill
from kernels_pallas.paged_attention.options import QUANTISED, Problem

__all__ = ["decode", "limit", "prefill"]

HEAD_DIMS = (64, 96, 128, 256)
PAGE_SIZES = (16, 32, 64, 128)
LARGEST_GROUP = 16
DTYPES = ("bfloat16", "float16")


def limit(problem: Problem) -> str | None:
    """None, or the sentence that says which limit of these kernels the problem is outside of."""
    if problem.head_dim not in HEAD_DIMS:
        return f"head dimension {problem.head_dim} is none of {', '.join(map(str, HEAD_DIMS))}"
    if problem.page_size not in PAGE_SIZES:
        return f"page size {problem.page_size} is none of {', '.join(map(str, PAGE_SIZES))}"
    if not 1 <= problem.group <= LARGEST_GROUP:
        return f"{problem.group} query heads share a KV head, more than {LARGEST_GROUP}"
    if problem.dtype not in DTYPES:
        return f"queries of {problem.dtype} are neither {' nor '.join(DTYPES)}"
    if problem.kv_dtype not in (problem.dtype, *QUANTISED):
        return f"pages of {problem.kv_dtype} are neither of the queries' type nor {' nor '.join(QUANTISED)}"
    return None
