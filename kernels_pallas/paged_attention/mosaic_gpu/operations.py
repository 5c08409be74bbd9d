"""The few operations that Pallas' Mosaic GPU interpreter lacks, each beside a plain form of the same meaning.

The interpreter (JAX 0.10.2 to 0.12) has no accumulators carried through a loop and no `wgmma` operand in registers; in
its older versions no layouts and no transposed references either. Everything else in these kernels, paging, rings,
barriers, masks, softmax and splits, is one code: what the interpreter proves is what the GPU runs.

`M` is the rows of a `wgmma`, always 64 a warpgroup. Values of shape [M, x] live in registers in the `WGMMA` layout:
a warp has 16 rows, four neighbouring lanes share a row, so a row's maximum is two shuffles.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

M = 64


class Operations(Protocol):
    def rows(self, value: float) -> jax.Array:  # [M] float32
        """A number for every row."""
        ...

    def accumulator(self, width: int) -> jax.Array:  # [M, width] float32
        """Zeros to accumulate a product in."""
        ...

    def row_index(self) -> jax.Array:  # [M] int32
        ...

    def column_index(self, width: int) -> jax.Array:  # [width] int32
        ...

    def index(self, width: int, axis: int) -> jax.Array:  # [M, width] int32
        ...

    def scores(self, q: Any, k: Any) -> jax.Array:  # [M, H], [C, H] in shared memory -> [M, C] float32
        """q . k^T"""
        ...

    def add_weighted(self, acc: jax.Array, weights: jax.Array, v: Any) -> jax.Array:
        """acc [M, H] + weights [M, C] (registers) . v [C, H] (shared memory)"""
        ...

    def free(self, barrier: Any) -> None:
        """Tell another warpgroup that what products have read may be overwritten."""
        ...


class OnDevice:
    """What a GPU runs."""

    def rows(self, value: float) -> jax.Array:
        return plgpu.layout_cast(jnp.full((M,), value, jnp.float32), plgpu.Layout.WGMMA.reduce(1))

    def accumulator(self, width: int) -> jax.Array:
        return plgpu.layout_cast(jnp.zeros((M, width), jnp.float32), plgpu.Layout.WGMMA)

    def row_index(self) -> jax.Array:
        return plgpu.broadcasted_iota(jnp.int32, (M,), 0, layout=plgpu.Layout.WGMMA.reduce(1))

    def column_index(self, width: int) -> jax.Array:
        return plgpu.broadcasted_iota(jnp.int32, (width,), 0, layout=plgpu.Layout.WGMMA.reduce(0))

    def index(self, width: int, axis: int) -> jax.Array:
        return plgpu.broadcasted_iota(jnp.int32, (M, width), axis, layout=plgpu.Layout.WGMMA)

    def scores(self, q: Any, k: Any) -> jax.Array:
        def product(acc):
            plgpu.wgmma(acc, q, k.transpose((1, 0)))
            return acc[...]

        return pl.run_scoped(product, plgpu.ACC((M, k.shape[0]), jnp.float32))

    def add_weighted(self, acc: jax.Array, weights: jax.Array, v: Any) -> jax.Array:
        return pl.run_state(lambda ref: plgpu.wgmma(ref, weights, v))(plgpu.ACC.init(acc))

    def free(self, barrier: Any) -> None:
        plgpu.barrier_arrive(barrier)


class Interpreted:
    """The plain forms."""

    def rows(self, value: float) -> jax.Array:
        return jnp.full((M,), value, jnp.float32)

    def accumulator(self, width: int) -> jax.Array:
        return jnp.zeros((M, width), jnp.float32)

    def row_index(self) -> jax.Array:
        return lax.broadcasted_iota(jnp.int32, (M,), 0)

    def column_index(self, width: int) -> jax.Array:
        return lax.broadcasted_iota(jnp.int32, (width,), 0)

    def index(self, width: int, axis: int) -> jax.Array:
        return lax.broadcasted_iota(jnp.int32, (M, width), axis)

    def scores(self, q: Any, k: Any) -> jax.Array:
        return jnp.dot(q[...], k[...].T, preferred_element_type=jnp.float32)

    def add_weighted(self, acc: jax.Array, weights: jax.Array, v: Any) -> jax.Array:
        return acc + jnp.dot(weights, v[...], preferred_element_type=jnp.float32)

    def free(self, barrier: Any) -> None:
        # `wgmma` reads as copies write, through the async proxy, and has been waited for; a plain read needs a fence
        plgpu.commit_smem()
        plgpu.barrier_arrive(barrier)
