"""What ran, where: every result names its machine and versions."""

import datetime
import os
import platform
import time
from pathlib import Path
from typing import Any


def describe(device: bool = True) -> dict[str, Any]:
    """Processor, device and versions; `platform` is the client's, on a GPU with CUDA's.

    Without `device` JAX is not loaded: what ran has not used it.
    """
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {name.strip(): value.strip() for name, value in fields.items()}
        flags = fields.get("flags", "").split()
        vector = next((name for name in ("amx_tile", "avx512f", "avx2") if name in flags), "no avx2")
        cpu = f"{fields.get('model name', cpu)} ({vector})"
    host = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
    if not device:
        return host
    import jax

    found = jax.devices()[0]
    client = " ".join(found.client.platform_version.split())
    return host | {"device": found.device_kind, "jax": jax.__version__, "platform": client}


def in_words(machine: dict[str, Any]) -> str:
    """What `describe` found, in a line."""
    return f"{machine['cpu']}, {machine['cores']} cores, JAX {machine['jax']}, Python {machine['python']}"


def matmul_rate(rows: int, inner: int = 512, columns: int = 2816, layers: int = 24, repeats: int = 7) -> float:
    """FLOP/s of float32 matmuls of so many rows, over weights that do not fit a cache (median)."""
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(0), layers + 1)
    x = jax.random.normal(keys[0], (rows, inner), jnp.float32)
    weights = [jax.random.normal(key, (inner, columns), jnp.float32) for key in keys[1:]]

    def all_of_them(x: jax.Array, weights: list[jax.Array]) -> jax.Array:
        # each product feeds the next, as in a model: the device cannot run them side by side
        for w in weights:
            x = (x @ w)[:, :inner] * 0.01
        return x

    run = jax.jit(lambda x, weights: all_of_them(x, weights))
    run(x, weights).block_until_ready()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run(x, weights).block_until_ready()
        times.append(time.perf_counter() - begin)
    return 2.0 * rows * inner * columns * layers / sorted(times)[repeats // 2]
