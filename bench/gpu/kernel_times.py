"""Part 2: the kernels' time over rows and context, beside what this machine's memory and matrix units can do.

A program calls the kernel several times, each call on the output of the one before and on another layer's pages, so
that neither the launch nor the cache is measured. Pages are scattered over the pool.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.gpu.part import Item, Setting
from bench.gpu.timing import copy_bandwidth, matmul_rate, memory_limit, normal, seconds
from kernels_pallas.paged_attention import choice, decode, prefill
from kernels_pallas.paged_attention.options import Problem
from kernels_pallas.pages import Pages

KV_HEADS, GROUP, HEAD_DIM, PAGE = 8, 4, 128, 64
LAYERS, CALLS = 2, 4


def items(setting: Setting) -> Iterator[Item]:
    dry = setting.dry_run
    yield Item("machine", partial(_machine, dry))
    decodes = [(64, 2048), (64, 4096), (256, 1024), (16, 4096), (1, 4096), (64, 1024), (256, 4096), (16, 1024),
               (64, 8192), (1, 1024), (4, 32_768)]  # fmt: skip
    prefills = [(1, 4096, 4096), (4, 2048, 2048), (1, 8192, 8192), (1, 2048, 8192), (8, 512, 4096)]
    if dry:
        decodes, prefills = [(2, 64), (1, 128)], [(1, 64, 64), (2, 32, 64)]
    backend = choice.choose("auto", _problem("bfloat16"), choice.device_capability())
    for i in range(max(len(decodes), len(prefills))):
        if i < len(decodes):
            yield Item(f"decode {decodes[i][0]} x {decodes[i][1]}", partial(_decode, dry, backend, *decodes[i]))
        if i < len(prefills):
            rows, chunk, context = prefills[i]
            yield Item(f"prefill {rows} x {chunk} of {context}", partial(_prefill, dry, backend, *prefills[i]))
        if i < 2:
            yield Item(f"cudnn decode {decodes[i][0]} x {decodes[i][1]}", partial(_cudnn_decode, dry, *decodes[i]))
            if prefills[i][1] == prefills[i][2]:
                yield Item(f"cudnn prefill {prefills[i][0]} x {prefills[i][1]}",
                           partial(_cudnn_prefill, dry, *prefills[i][:2]))  # fmt: skip
    for kv_dtype in ("float8_e4m3fn", "int8"):
        yield Item(f"decode {decodes[0][0]} x {decodes[0][1]} {kv_dtype}",
                   partial(_decode, dry, backend, *decodes[0], kv_dtype=kv_dtype))  # fmt: skip


def _machine(dry: bool) -> dict[str, Any]:
    return {"copy_bytes_per_s": copy_bandwidth(dry), "matmul_flops_per_s": matmul_rate(dry)}


def _problem(kv_dtype: str) -> Problem:
    return Problem(HEAD_DIM, GROUP, PAGE, "bfloat16", kv_dtype)


def _pages(rows: int, context: int, kv_dtype: str) -> tuple[list[Pages], jax.Array]:
    """(pages of each layer, tables that scatter them)."""
    width = -(-context // PAGE)
    count = rows * width + 1
    shape = (count, KV_HEADS, PAGE, HEAD_DIM)
    layer = 2 * count * KV_HEADS * PAGE * HEAD_DIM * jnp.dtype(kv_dtype).itemsize
    layers = LAYERS if 2.5 * layer * LAYERS < memory_limit() else 1
    scale, scales = 30.0 if kv_dtype == "int8" else 1.0, None
    if _problem(kv_dtype).quantised:
        scales = jnp.full((count, KV_HEADS), 1 / scale, jnp.float32)
    caches = [
        Pages(normal(2 * i, shape, kv_dtype, scale), normal(2 * i + 1, shape, kv_dtype, scale), scales, scales)
        for i in range(layers)
    ]
    ids = np.random.default_rng(0).permutation(np.arange(1, count, dtype=np.int32))
    return caches, jnp.asarray(ids.reshape(rows, width))


def _chained(call: Any, q: jax.Array, caches: list[Any], *where: jax.Array) -> float:
    """Seconds of one call; each is given what one of the `caches` is."""

    def program(q: jax.Array, caches: Any, where: Any) -> jax.Array:
        for i in range(CALLS):
            q = call(q, caches[i % len(caches)], *where)
        return q

    run = jax.jit(program)
    return seconds(lambda: run(q, caches, where)) / CALLS


def _decode(dry: bool, backend: str, rows: int, context: int, kv_dtype: str = "bfloat16") -> dict[str, Any]:
    caches, tables = _pages(rows, context, kv_dtype)
    lengths = jnp.full(rows, context, jnp.int32)
    q = normal(9, (rows, KV_HEADS * GROUP, HEAD_DIM), "bfloat16")
    took = _chained(partial(decode, backend=backend), q, caches, tables, lengths)
    moved = 2 * rows * context * KV_HEADS * HEAD_DIM * jnp.dtype(kv_dtype).itemsize
    return {"backend": backend, "s": took, "bytes_per_s": moved / took, "share": moved / took / copy_bandwidth(dry)}


def _prefill(dry: bool, backend: str, rows: int, chunk: int, context: int) -> dict[str, Any]:
    caches, tables = _pages(rows, context, "bfloat16")
    offsets = jnp.arange(rows + 1, dtype=jnp.int32) * chunk
    lengths = jnp.full(rows, context, jnp.int32)
    q = normal(9, (rows * chunk, KV_HEADS * GROUP, HEAD_DIM), "bfloat16")
    took = _chained(partial(prefill, backend=backend), q, caches, tables, offsets, lengths)
    return {"backend": backend, "s": took, **_rate(dry, rows, chunk, context, took)}


def _rate(dry: bool, rows: int, chunk: int, context: int, took: float) -> dict[str, float]:
    seen = chunk * (context - chunk) + chunk * (chunk + 1) // 2
    rate = 4 * rows * seen * KV_HEADS * GROUP * HEAD_DIM / took
    return {"flops_per_s": rate, "share": rate / matmul_rate(dry)}


def _contiguous(rows: int, context: int) -> list[tuple[jax.Array, jax.Array]]:
    shape = (rows, context, KV_HEADS, HEAD_DIM)
    return [(normal(2 * i, shape, "bfloat16"), normal(2 * i + 1, shape, "bfloat16")) for i in range(LAYERS)]


def _cudnn_decode(dry: bool, rows: int, context: int) -> dict[str, Any]:
    q = normal(9, (rows, 1, KV_HEADS * GROUP, HEAD_DIM), "bfloat16")
    took = _chained(_cudnn(dry, causal=False), q, _contiguous(rows, context))
    moved = 4 * rows * context * KV_HEADS * HEAD_DIM
    return {"s": took, "bytes_per_s": moved / took, "share": moved / took / copy_bandwidth(dry)}


def _cudnn_prefill(dry: bool, rows: int, chunk: int) -> dict[str, Any]:
    q = normal(9, (rows, chunk, KV_HEADS * GROUP, HEAD_DIM), "bfloat16")
    took = _chained(_cudnn(dry, causal=True), q, _contiguous(rows, chunk))
    return {"s": took, **_rate(dry, rows, chunk, chunk, took)}


def _cudnn(dry: bool, *, causal: bool) -> Any:
    attend = partial(jax.nn.dot_product_attention, is_causal=causal, implementation="xla" if dry else "cudnn")
    return lambda q, keys_and_values: attend(q, *keys_and_values)
