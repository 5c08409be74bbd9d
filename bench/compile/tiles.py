"""The tile table of the Mosaic GPU kernels: `python -m bench.tiles --target h200 [--write]`.

For every head dimension and size of a page's number, tiles are compiled for the target on several probes (small and
large pages, both types of 8 bits, and scores with window, cap and sinks) and the rule of `tile_rule.py` takes one.
Needs JAX's CUDA plugin and no GPU. With `--time` on a GPU, tiles that pass are timed too and the fastest is taken;
`--time --dry-run` takes the same way on the CPU, in the interpreter: its times mean nothing.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.compile.tile_rule import Choice, Measured, Tile, candidates, choose, programs_at_most, rank
from jaxserve.core.errors import CompilerMissing, JaxserveError
from jaxserve.core.target import Target, find_target
from kernels_pallas.interpreter_threads import make_room_for_interpreter

HEAD_DIMS = (64, 96, 128, 256)
GROUP, KV_HEADS, ROWS, TOKENS, CONTEXT = 4, 8, 64, 2048, 8192
TABLE = Path(__file__).parents[2] / "kernels_pallas/paged_attention/mosaic_gpu/tile_table.py"


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    kinds = (given.only,) if given.only else ("decode", "prefill")
    keys = [(kind, h, size) for kind in kinds for size in (2, 1) for h in given.head_dims]
    table: dict[tuple[str, int, int], tuple[int, ...]] = {}
    try:
        target = find_target(given.target)
        with tempfile.TemporaryDirectory(prefix="jaxserve-tiles-") as folder:
            if given.dry_run:
                make_room_for_interpreter()
            if given.time:
                measured = ((*key, _fastest(*key, target, given.dry_run)) for key in keys)
            else:
                from bench.compile.kernel_report import dump_to

                dump_to(Path(folder))  # before JAX is loaded
                compiler = TileCompiler(target, Path(folder))
                measured = ((*key, compiler.choose(*key)) for key in keys)
            for kind, head_dim, size, tile in measured:
                if tile is None:
                    print(f"{kind} H{head_dim} x {size} bytes: no tile passes")
                    continue
                table[kind, head_dim, size] = tuple(tile)[: 2 if kind == "decode" else 3]
    except JaxserveError as error:
        print(f"bench.tiles: {error}", file=sys.stderr)
        return 2
    if given.write:
        if len(table) < 2 * 2 * len(HEAD_DIMS) or given.dry_run:
            print("bench.tiles: the table is not whole, or timed in a dry run: not written", file=sys.stderr)
            return 1
        TABLE.write_text(table_text(table, given.target, timed=given.time))
    return 0 if len(table) == len(keys) else 1


class TileCompiler:
    """Compiles tiles for a target that need not be here. CompilerMissing without the CUDA plugin or `ptxas`."""

    def __init__(self, target: Target, dump: Path) -> None:
        from bench.compile.kernel_report import find_ptxas
        from jaxserve.runtime.programs.compile_only import CompileOnlyDevice, without_gpu

        without_gpu()
        self._target, self._dump, self._device = target, dump, CompileOnlyDevice(target)
        if find_ptxas() is None:
            raise CompilerMissing("ptxas is not there: install a CUDA toolkit, or pip install nvidia-cuda-nvcc")

    def choose(self, kind: str, head_dim: int, size: int) -> Tile | None:
        choice = choose(kind, head_dim, size, self._target, partial(self.measure, kind, head_dim, size))
        _print_choice(f"{kind} H{head_dim} x {size} bytes", choice)
        return choice and choice.tile

    def measure(self, kind: str, head_dim: int, size: int, tile: Tile) -> Measured:
        from bench.compile.kernel_report import blocks_per_core, take_dump, without_disassembler_complaints

        spills, programs = 0, 32
        for probe in probes(kind, size):
            with self._device.lowering():
                lowered = self._lower(kind, head_dim, tile, *probe)
            with without_disassembler_complaints():
                lowered.compile()
            kernels = [k for k in take_dump(self._dump, self._target.capability).kernels if "mosaic" in k.name]
            assert kernels, "a Mosaic kernel leaves its PTX"
            spills = max(spills, *(k.spills or 0 for k in kernels))
            programs = min(programs, *(blocks_per_core(k, self._target) or 0 for k in kernels))
        return Measured(spills, programs)

    def _lower(self, kind: str, head_dim: int, tile: Tile, page: int, kv_dtype: str, everything: bool) -> Any:
        import jax
        import jax.numpy as jnp

        from kernels_pallas.pages import Pages

        shape = self._device.shape
        queries, rows = (ROWS, ROWS) if kind == "decode" else (TOKENS, 16)
        half = shape((ROWS * CONTEXT // page, KV_HEADS, page, head_dim), kv_dtype)
        where = [shape((rows, CONTEXT // page), jnp.int32), shape((rows,), jnp.int32)]
        if kind == "prefill":
            where.insert(1, shape((rows + 1,), jnp.int32))
        scales = shape(half.shape[:2], jnp.float32) if kv_dtype != "bfloat16" else None
        sinks = shape((KV_HEADS * GROUP,), jnp.float32) if everything else None
        q = shape((queries, KV_HEADS * GROUP, head_dim), "bfloat16")
        call = partial(run_tile, kind, tile, everything=everything)
        return jax.jit(call).lower(q, Pages(half, half, scales, scales), where, sinks)


def run_tile(
    kind: str, tile: Tile, q: Any, pages: Any, where: Any, sinks: Any,
    *, everything: bool = False, interpret: bool = False,
) -> Any:  # fmt: skip
    """One call of a kernel with this tile; `everything`: with window and cap, beside the sinks if given."""
    from kernels_pallas.paged_attention.mosaic_gpu import decode, prefill, tiles
    from kernels_pallas.paged_attention.options import Options

    window, cap = (1000, 30.0) if everything else (None, None)
    options = Options(q.shape[2] ** -0.5, window, cap, interpret=interpret)
    given = q, pages, *where, sinks, options
    if kind == "decode":
        return decode(*given, tile=tiles.DecodeTile(*tile[:2]))
    return prefill(*given, tile=tiles.PrefillTile(*tile))


def probes(kind: str, size: int) -> Iterator[tuple[int, str, bool]]:
    """(page size, type, with window, cap and sinks). Prefill at head dimension 256 spills 12 bytes with all of
    those on pages of 16: its tile is not given up for that."""
    small, large = ("bfloat16", "bfloat16") if size == 2 else ("float8_e4m3fn", "int8")
    yield 16, small, False
    if kind == "decode":
        yield 16, large, True
    yield 64, small, True
    yield 64, large, False


def _fastest(kind: str, head_dim: int, size: int, target: Target, dry: bool) -> Tile | None:
    """Of the tiles that could pass, on the GPU that is here: registers and spills show in the time."""
    import jax
    import jax.numpy as jnp

    from bench.gpu.timing import normal, seconds
    from kernels_pallas.pages import Pages

    if not dry and jax.default_backend() != "gpu":
        raise JaxserveError("--time needs a GPU; --time --dry-run takes the same way on the CPU")
    rows, context, heads, page = (2, 80, 1, 16) if dry else (64, 2048, KV_HEADS, 64)
    kv_dtype = "bfloat16" if size == 2 else "float8_e4m3fn"
    width = -(-context // page)
    shape = (rows * width + 1, heads, page, head_dim)
    k, v = (normal(seed, shape, kv_dtype) for seed in (1, 2))
    tables = jax.random.permutation(jax.random.key(0), jnp.arange(1, rows * width + 1, dtype=jnp.int32))
    where: list[Any] = [tables.reshape(rows, width), jnp.full(rows, context, jnp.int32)]
    queries = rows
    if kind == "prefill":
        queries = rows * context
        where.insert(1, jnp.arange(rows + 1, dtype=jnp.int32) * context)
    q = normal(3, (queries, heads * GROUP, head_dim), "bfloat16")
    scales = jnp.ones(shape[:2], jnp.float32) if size == 1 else None
    pages = Pages(k, v, scales, scales)
    times: dict[Tile, float] = {}
    for tile in candidates(kind, size):
        most = programs_at_most(kind, head_dim, size, tile, target)
        if rank(kind, head_dim, size, tile, most, target) is None:
            continue
        call = jax.jit(partial(run_tile, kind, tile, interpret=dry))
        once = partial(call, q, pages, where, None)
        times[tile] = seconds(once, batches=1, target_s=1e-6) if dry else seconds(once)
        print(f"{kind} H{head_dim} x {size} bytes {tuple(tile)}: {times[tile] * 1e6:.1f} us{dry * ' (dry run)'}")
    return min(times, key=lambda tile: times[tile]) if times else None


def table_text(table: dict[tuple[str, int, int], tuple[int, ...]], target: str, *, timed: bool) -> str:
    """`tile_table.py`."""
    how = "each the fastest there" if timed else "no GPU has timed them"
    parts = [f'"""Written by `python -m bench.tiles --target {target}{timed * " --time"} --write`: {how}."""\n']
    for kind, fields in (("decode", "tokens, stages"), ("prefill", "tokens, stages, computing")):
        parts.append(f"\n{kind.upper()} = {{  # (head dimension, bytes of a page's number): ({fields})\n")
        for size in (2, 1):
            entries = (f"({h}, {size}): {table[kind, h, size]}" for h in HEAD_DIMS)
            parts.append(f"    {', '.join(entries)},\n")
        parts.append("}  # fmt: skip\n")
    return "".join(parts)


def _print_choice(name: str, choice: Choice | None) -> None:
    if choice is not None:
        tried = ", ".join(f"{tuple(t)}: {m.programs} an SM, {m.spills} B spilt" for t, m in choice.tried.items())
        print(f"{name}: {tuple(choice.tile)}; tried {tried}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.tiles", description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="h200", help="a name in configs/targets, or a file (default h200)")
    parser.add_argument("--head-dims", type=lambda s: tuple(map(int, s.split(","))), default=HEAD_DIMS)
    parser.add_argument("--only", choices=("decode", "prefill"), help="one of the two kernels")
    parser.add_argument("--time", action="store_true", help="time the tiles on the GPU that is here")
    parser.add_argument("--dry-run", action="store_true", help="with --time: on the CPU; times mean nothing")
    parser.add_argument("--write", action="store_true", help="write kernels_pallas/.../tile_table.py")
    return parser
