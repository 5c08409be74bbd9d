"""Part 1: every kernel against float64, on fresh random inputs: all types, head dimensions, options, edge lengths."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from bench.gpu.part import Item, Setting
from kernels_pallas.paged_attention import choice, decode, prefill
from kernels_pallas.paged_attention.cases import BARS, Case, draw, relative_error
from kernels_pallas.paged_attention.options import QUANTISED, Problem


def items(setting: Setting) -> Iterator[Item]:
    backends = choice.preferred(choice.device_capability())
    limits = {"max_pages": 3, "rows": 6} if setting.dry_run else {"max_pages": 6, "rows": 24, "kv_heads": 4}
    seed = setting.seed
    for backend in backends:
        types = [("bfloat16", None), ("bfloat16", QUANTISED[0]), ("float16", None), ("bfloat16", QUANTISED[1])]
        dims = (128, 64, 96, 256)
        if backend != backends[0]:  # the others in passing
            types, dims = types[:2], dims[:2]
        for dtype, kv_dtype in types:
            for head_dim in dims[:1] if setting.dry_run else dims:
                for kind in ("decode", "prefill"):
                    seed += 1
                    name = f"{backend} {kind} H{head_dim} {dtype} on {kv_dtype or dtype}"
                    sizes = limits | {"head_dim": head_dim, "dtype": dtype, "kv_dtype": kv_dtype}
                    yield Item(name, partial(_check, backend, kind, seed, sizes))


def _check(backend: str, kind: str, seed: int, sizes: dict[str, Any]) -> dict[str, Any]:
    case = draw(kind, seed, **sizes)
    problem: Problem = case.problem
    if (reason := choice.limit(backend, problem)) is not None:
        return {"skipped": reason, "case": str(case)}
    error, bar = relative_error(case, _compute(case, backend)), BARS[problem.dtype]
    return {"relative_error": error, "bar": bar, "passed": bool(error <= bar), "case": str(case)}


def _compute(case: Case, backend: str) -> np.ndarray:
    static = case.options
    sinks = static.pop("sinks")
    call = decode if case.kind == "decode" else prefill
    return np.asarray(jax.jit(partial(call, **static, backend=backend))(*case.arguments, sinks=sinks))
