"""Timing on a device that works asynchronously, and what the machine can do at all."""

import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp


def seconds(run: Callable[[], Any], *, batches: int = 5, target_s: float = 0.05) -> float:
    """Median over batches of one run's time. `run` dispatches work, and returns an array that depends on all of it.

    A batch dispatches as many runs as take `target_s` and waits once, so that the host's part hides behind the
    device's.
    """
    jax.block_until_ready(run())
    begin = time.perf_counter()
    jax.block_until_ready(run())
    repeats = max(1, min(1000, int(target_s / max(time.perf_counter() - begin, 1e-6))))
    times = []
    for _ in range(batches):
        begin = time.perf_counter()
        for _ in range(repeats):
            last = run()
        jax.block_until_ready(last)
        times.append((time.perf_counter() - begin) / repeats)
    return statistics.median(times)


@cache
def copy_bandwidth(dry_run: bool) -> float:
    """Bytes a second that an elementwise kernel reads and writes: what a memory-bound kernel is measured against."""
    size = (1 << 20) if dry_run else (1 << 30)  # elements of 4 bytes: 4 GiB, far beyond any cache
    state = [jnp.ones(size, jnp.float32)]
    add = jax.jit(lambda x: x + 1.0, donate_argnums=0)

    def run() -> jax.Array:
        state[0] = add(state[0])
        return state[0]

    return 2 * 4 * size / seconds(run)


@cache
def matmul_rate(dry_run: bool) -> float:
    """bfloat16 FLOP/s of a large square product: what a compute-bound kernel is measured against."""
    size = 256 if dry_run else 8192
    x = jnp.full((size, size), 1.0 / size, jnp.bfloat16)
    state = [x]
    multiply = jax.jit(lambda a, b: jnp.dot(a, b))

    def run() -> jax.Array:
        state[0] = multiply(state[0], x)
        return state[0]

    return 2 * size**3 / seconds(run)


def memory_limit() -> int:
    """Bytes that JAX may take on the device, or a token amount where it does not say (the CPU)."""
    return int((jax.devices()[0].memory_stats() or {}).get("bytes_limit", 256 << 20))


def normal(seed: int, shape: tuple[int, ...], dtype: Any, scale: float = 1.0) -> jax.Array:
    """Random numbers made on the device, by a generator that compiles and runs fast."""
    return _normal(jax.random.key(seed, impl="unsafe_rbg"), shape, jnp.dtype(dtype).name, scale)


def _draw(key: jax.Array, shape: tuple[int, ...], dtype: str, scale: float) -> jax.Array:
    uniform = jax.random.uniform(key, shape, jnp.bfloat16, -1.0, 1.0)
    return (uniform * jnp.asarray(scale * 3**0.5, jnp.bfloat16)).astype(dtype)


_normal = jax.jit(_draw, static_argnums=(1, 2, 3))
