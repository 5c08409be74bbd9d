"""The work of `bench.compile`: kernels and steps compiled for a target, each a row of a table.

Temporaries of a step may be the activations of one layer (the gate and up projections, their product, queries, keys
and values, a few hidden states) and `SLACK`. What else is wrong with a program, `compile_rules` says.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bench.compile.kernel_report import (
    Dump,
    Kernel,
    blocks_per_core,
    find_ptxas,
    take_dump,
    without_disassembler_complaints,
)
from bench.compile.program_report import ProgramReport, compile_and_report
from bench.compile.rules import KNOWN, kernel_problems, program_problems
from bench.shared.models import MODELS, tiny
from jaxserve.core.buckets import BucketTable
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import CompilerMissing, ConfigError
from jaxserve.core.target import Target
from jaxserve.models.config import ModelConfig
from jaxserve.models.registry import model_for
from jaxserve.runtime.capacity import step_temporaries
from jaxserve.runtime.geometry import Geometry, pages_dtype
from jaxserve.runtime.kv_cache import block_bytes
from jaxserve.runtime.offload.block_movers import GROUPS
from jaxserve.runtime.programs.compile_only import CompileOnlyDevice, without_gpu
from jaxserve.runtime.programs.lowering import Lowering
from kernels_pallas.paged_attention import UnsupportedByBackend, decode, prefill
from kernels_pallas.paged_attention.choice import choose
from kernels_pallas.paged_attention.options import QUANTISED, Problem
from kernels_pallas.pages import Pages

SLACK = 64 << 20
HEAD_DIMS = 64, 96, 128, 256
KV_HEADS, ROWS, TOKENS, CONTEXT = 8, 64, 2048, 8192
HEADER = (
    f"{'program':44s} {'compile':>8s} {'arguments':>10s} {'aliased':>10s} {'temporary':>10s} {'kernels':>7s} "
    f"{'registers':>9s} {'spills':>6s} {'shared':>8s} {'blocks/SM':>9s}"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One program. Sizes in bytes; registers, spills, shared memory and blocks an SM of its attention kernels."""

    name: str
    compile_s: float
    arguments: int
    aliased: int
    temporaries: int
    kernels: int
    registers: int | None
    spills: int | None
    shared: int | None
    blocks_per_sm: int | None
    command_buffers: int | None
    problems: tuple[str, ...]
    known: str = ""
    """What is known to be short of the rule, and is no failure."""

    def __str__(self) -> str:
        size = lambda n: f"{n / 2**20:.1f} MiB" if n < 10 << 30 else f"{n / 2**30:.1f} GiB"  # noqa: E731
        show = lambda n: "-" if n is None else str(n)  # noqa: E731
        shared = "-" if self.shared is None else f"{self.shared / 1024:.0f} KiB"
        return (
            f"{self.name:44s} {self.compile_s:6.1f} s {size(self.arguments):>10s} {size(self.aliased):>10s} "
            f"{size(self.temporaries):>10s} {self.kernels:7d} {show(self.registers):>9s} {show(self.spills):>6s} "
            f"{shared:>8s} {show(self.blocks_per_sm):>9s}"
            + ("  FAILS" if self.problems else f"  known: {self.known}" if self.known else "")
        )


class CompileRun:
    """Compiles for one target, prints a row for each program, and keeps the rows.

    Raises:
      CompilerMissing: no CUDA plugin, or no `ptxas` to say what the kernels take.
    """

    def __init__(self, target: Target, dump: Path, backend: str, config: EngineConfig) -> None:
        without_gpu()
        self._target, self._dump, self._backend, self._config = target, dump, backend, config
        self._device = CompileOnlyDevice(target)
        if find_ptxas() is None:
            raise CompilerMissing("ptxas is not there to tell registers and spills: install a CUDA toolkit, or "
                                  "pip install nvidia-cuda-nvcc")  # fmt: skip
        self.rows: list[Row] = []
        print(f"for {target.device} with JAX {jax.__version__}\n{HEADER}", flush=True)

    def kernels(self, head_dims: Collection[int], *, small: bool) -> None:
        """Decode and prefill kernels over the problems that the table of tiles tells apart."""
        for problem in small_problems() if small else (p for p in problems() if p.head_dim in head_dims):
            for kind, lower in (("decode", self._decode), ("prefill", self._prefill)):
                name = f"{kind} H{problem.head_dim} G{problem.group} S{problem.page_size} {problem.kv_dtype}"
                try:
                    backend = choose(self._backend, problem, self._target.capability)
                except UnsupportedByBackend as error:
                    self._add(Row(name, 0, 0, 0, 0, 0, None, None, None, None, None, (str(error),)))
                    continue
                known = KNOWN.get((backend, problem.head_dim, jnp.dtype(problem.kv_dtype).itemsize), "")
                self._compile(
                    name, lambda f=lower, p=problem, b=backend: f(p, b), backend=backend, kind=kind,
                    known=known if kind == "prefill" else "",
                )  # fmt: skip

    def steps(self, names: list[str], *, small: bool) -> None:
        """The model program of every bucket of the configuration, widest first, what scores the prompts of the widest,
        and the moves of KV blocks."""
        for name in names:
            if name not in MODELS:
                raise ConfigError(f"models = {name!r} is not known: give some of {', '.join(MODELS)}")
            model = MODELS[name]
            if small:  # narrow, and as long as the configuration wants it
                model = replace(tiny(model), max_position_embeddings=model.max_position_embeddings)
            lowering, cache_bytes, page, backend = self._lowering(model)
            buckets = BucketTable.from_config(self._config.buckets, self._config.scheduler).all()
            for bucket in buckets[:2] if small else buckets:
                step = f"{name}{' tiny' if small else ''} step {bucket}"
                self._compile(
                    step, lambda low=lowering, b=bucket: low.model_program(b),
                    backend=backend, cache_bytes=cache_bytes, page=page,
                    limit=step_temporaries(model, bucket) + SLACK,
                )  # fmt: skip
            widest = buckets[0]
            self._compile(
                f"{name}{' tiny' if small else ''} score {widest.prefill_tokens}p",
                lambda low=lowering, b=widest: low.scorer(b.prefill_tokens, b.prefill_rows),
                backend=backend, page=page, limit=step_temporaries(model, widest) + SLACK,
            )  # fmt: skip
            for move in ("gather", "scatter"):
                blocks = GROUPS[0]
                self._compile(
                    f"{name}{' tiny' if small else ''} {move} {blocks} blocks",
                    lambda low=lowering, m=move, n=blocks: low.block_mover(m, n),
                    cache_bytes=cache_bytes if move == "scatter" else 0, page=page,
                    limit=2 * blocks * cache_bytes // page[0] + SLACK,
                )  # fmt: skip

    def _lowering(self, model: ModelConfig) -> tuple[Lowering, int, tuple[int, ...], str]:
        """The model's programs, the cache's bytes, the shape of one page array, and who computes attention.

        The cache takes half of the memory at most: above four fifths for all arguments, XLA tries for minutes to save
        memory where there is nothing to save.
        """
        cache, dtype = self._config.cache, jnp.dtype("bfloat16")
        pages = pages_dtype(cache, dtype)
        size = block_bytes(model, cache.block_size, pages)
        blocks = min(self._target.memory // 2 // size, 1 << 16) - 1 | 1
        problem = Problem(model.head_dim, model.group_size, cache.block_size, dtype.name, pages.name)
        backend = choose(self._backend, problem, self._target.capability)
        runtime = replace(self._config.runtime, attention_backend=backend)
        geometry = Geometry.of(model, self._config, dtype, blocks)
        params = model_for(model).abstract_params(model, dtype)
        lowering = Lowering(geometry, params, self._device, runtime)
        return lowering, size * blocks, (blocks, model.num_kv_heads, cache.block_size, model.head_dim), backend

    def _compile(
        self,
        name: str,
        lower: Callable[[], Any],
        *,
        backend: str = "",
        kind: str = "",
        known: str = "",
        cache_bytes: int = 0,
        page: tuple[int, ...] = (),
        limit: int | None = None,
    ) -> None:
        def lower_there() -> Any:
            with self._device.lowering():
                return lower()

        with without_disassembler_complaints():
            _, report = compile_and_report(name, lower_there, page)
        dump = take_dump(self._dump, self._target.capability)
        attention = [k for k in dump.kernels if "paged" in k.name or "mosaic" in k.name]
        problems = [
            *program_problems(report, cache_bytes, limit),
            *kernel_problems(attention, backend, kind, self._target, known=bool(known)),
        ]
        self._add(_row(report, dump, attention, self._target, problems, known))

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        print(row, flush=True)

    def _decode(self, problem: Problem, backend: str) -> Any:
        return jax.jit(partial(decode, backend=backend)).lower(*self._arguments(problem, ROWS, ROWS))

    def _prefill(self, problem: Problem, backend: str) -> Any:
        q, pages, tables, lengths = self._arguments(problem, TOKENS, 16)
        offsets = self._device.shape((17,), jnp.int32)
        return jax.jit(partial(prefill, backend=backend)).lower(q, pages, tables, offsets, lengths)

    def _arguments(self, problem: Problem, queries: int, rows: int) -> tuple[Any, ...]:
        shape, size = self._device.shape, problem.page_size
        half = shape((ROWS * CONTEXT // size, KV_HEADS, size, problem.head_dim), problem.kv_dtype)
        scales = shape(half.shape[:2], jnp.float32) if problem.quantised else None
        return (
            shape((queries, KV_HEADS * problem.group, problem.head_dim), problem.dtype),
            Pages(half, half, scales, scales), shape((rows, CONTEXT // size), jnp.int32), shape((rows,), jnp.int32),
        )  # fmt: skip


def problems() -> Iterator[Problem]:
    """Every head dimension, page size and page type, at a group of 4; every group at one of them; and float16."""
    for head_dim in HEAD_DIMS:
        for size in (16, 32, 64, 128):
            for kv_dtype in ("bfloat16", *QUANTISED):
                yield Problem(head_dim, 4, size, "bfloat16", kv_dtype)
    for group in (*range(1, 4), *range(5, 17)):
        yield Problem(128, group, 64, "bfloat16", "bfloat16")
    for head_dim in HEAD_DIMS:
        yield Problem(head_dim, 8, 64, "float16", "float16")


def small_problems() -> Iterator[Problem]:
    yield Problem(128, 4, 64, "bfloat16", "bfloat16")
    yield Problem(64, 4, 32, "bfloat16", "int8")


def _row(
    report: ProgramReport, dump: Dump, attention: list[Kernel], target: Target, problems: list[str], known: str
) -> Row:
    most = lambda values: max((value for value in values if value is not None), default=None)  # noqa: E731
    blocks = [count for kernel in attention if (count := blocks_per_core(kernel, target)) is not None]
    return Row(
        report.name, report.lower_s + report.compile_s, report.arguments, report.aliased, report.temporaries,
        dump.launches, most(k.registers for k in attention), most(k.spills for k in attention),
        most(k.shared for k in attention), min(blocks, default=None), dump.command_buffers, tuple(problems), known,
    )  # fmt: skip
