"""How the kernels are launched: on a GPU, or in the interpreter that also looks for races."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas.interpreter_threads import INTERPRETER_THREADS, threads_of_the_client
from kernels_pallas.paged_attention.mosaic_gpu.operations import Interpreted, OnDevice, Operations


def operations(interpret: bool) -> Operations:
    return Interpreted() if interpret else OnDevice()


def launch(
    body: Callable[..., None],
    *,
    name: str,
    grid: dict[str, int],
    out_type: Any,
    interpret: bool,
    warpgroups: int = 1,
) -> Callable[..., Any]:
    """A function of the operands. `grid`: axis names and sizes, the fastest first; several warpgroups are axis "wg"."""
    threads = {"num_threads": warpgroups, "thread_name": "wg"} if warpgroups > 1 else {}
    names = tuple(reversed(grid))
    return plgpu.kernel(
        body,
        out_type=out_type,
        grid=tuple(grid[axis] for axis in names),
        grid_names=names,
        kernel_name=name,
        interpret=_interpreter() if interpret else None,
        # approximate exp2 and division: 2 units in the last place of float32
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup
        ),
        **threads,
    )  # fmt: skip


def _interpreter() -> Any:
    """Races are looked for, memory that nobody has written is NaN, and copies past an array's end are allowed: the
    hardware fills with zeros."""
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    if (threads := threads_of_the_client()) < INTERPRETER_THREADS:
        warnings.warn(
            f"the interpreter of Mosaic GPU kernels may wait forever with {threads} XLA threads: set the environment "
            f"variable PJRT_NPROC={INTERPRETER_THREADS} before JAX is used",
            stacklevel=2,
        )
    return InterpretGPUParams(detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="uninitialized")


def swizzled(shape: tuple[int, ...], dtype: Any, columns: int | None = None) -> Any:
    """Shared memory [.., rows, H] as `wgmma` wants it: tiles of 8 rows x 64 columns, or 32 where H needs it.

    Both operands of a product have one width, and the tokens of a tile are a multiple of it.
    """
    columns = columns or (64 if shape[-1] % 64 == 0 else 32)
    width = columns * jnp.dtype(dtype).itemsize
    return plgpu.SMEM(
        shape, dtype, transforms=(plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(width))
    )  # fmt: skip


def padded(x: jax.Array, multiple: int) -> jax.Array:
    """x with a leading dimension that a TMA copy by whole tiles can address; x itself where it already is."""
    missing = -x.shape[0] % multiple
    return jnp.pad(x, ((0, missing), *((0, 0) for _ in x.shape[1:]))) if missing else x
