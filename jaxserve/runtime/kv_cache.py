"""The KV cache's bytes: for every layer one array of key pages and one of value pages, allocated once.

Layers are separate arrays and every step gets them donated, so that XLA writes new keys and values in place. (A stacked
cache whose layers are taken out and put back costs a copy of the cache: 1.376 GiB of temporaries against 0.022 for an
8B model with 64 rows, compiled for an H200.)

Blocks of 8 bits have float32 scales beside them, one a block and head: see `kernels_pallas.write_kv`.
"""

import os
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from jaxserve.core.errors import NotEnoughMemory
from jaxserve.core.sections import CacheConfig
from jaxserve.core.settings import require
from jaxserve.models.config import ModelConfig
from jaxserve.parallel.placement import Placement
from jaxserve.runtime.geometry import Geometry, pages_dtype
from kernels_pallas.paged_attention.options import QUANTISED
from kernels_pallas.pages import Pages

KVCache = tuple[Pages, ...]
"""By layer."""


def block_bytes(model: ModelConfig, block_size: int, dtype: Any) -> int:
    """Bytes of one block of pages of `dtype` over all layers, keys and values, scales included."""
    pages = block_size * model.head_dim * jnp.dtype(dtype).itemsize
    scale = 4 if _quantised(dtype) else 0
    return model.num_layers * 2 * model.num_kv_heads * (pages + scale)


def abstract_cache(geometry: Geometry, sharding: jax.sharding.Sharding | None = None) -> Any:
    """The cache's shapes, as a KVCache of jax.ShapeDtypeStruct."""
    model = geometry.model
    shape = geometry.num_blocks, model.num_kv_heads, geometry.block_size, model.head_dim
    page, scale = jax.ShapeDtypeStruct(shape, geometry.page_dtype, sharding=sharding), None
    if _quantised(geometry.page_dtype):
        scale = jax.ShapeDtypeStruct(shape[:2], jnp.float32, sharding=sharding)
    return tuple(Pages(page, page, scale, scale) for _ in range(model.num_layers))


def _quantised(dtype: Any) -> bool:
    return jnp.dtype(dtype).name in QUANTISED


def allocate_cache(geometry: Geometry, placement: Placement) -> KVCache:
    """Zeros."""
    shapes = abstract_cache(geometry, placement.pages)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), shapes)


def size_pool(
    config: CacheConfig,
    model: ModelConfig,
    dtype: Any,
    device: jax.Device,
    *,
    weight_bytes: int,
    program_bytes: int,
    useful_tokens: int,
) -> int:
    """How many blocks to allocate, the scratch block included.

    By `num_blocks`, else by `kv_cache_bytes`, else what `gpu_memory_utilization` leaves beside weights and the largest
    program's temporaries; on the CPU at most a quarter of the machine's memory, and a warning where the user chose
    another `gpu_memory_utilization`. Never more than `useful_tokens` need.

    Raises:
      NotEnoughMemory: not even one block fits.
    """
    size = block_bytes(model, config.block_size, pages_dtype(config, dtype))
    if config.num_blocks is not None:
        return config.num_blocks + 1
    useful = -(-useful_tokens // config.block_size)
    if config.kv_cache_bytes is not None:
        blocks, said = config.kv_cache_bytes // size, f"kv_cache_bytes = {config.kv_cache_bytes}"
    elif device.platform == "cpu":
        if (share := config.gpu_memory_utilization) != CacheConfig().gpu_memory_utilization:
            warnings.warn(
                f"gpu_memory_utilization = {share} has no effect on the CPU, where the KV pool takes at most a quarter "
                f"of the machine's memory: set kv_cache_bytes instead",
                stacklevel=2,
            )
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        blocks, said = min(useful, memory // 4 // size), f"a quarter of {memory / 2**30:.1f} GiB"
    else:
        limit = (device.memory_stats() or {}).get("bytes_limit", 0)
        room = int(limit * config.gpu_memory_utilization) - weight_bytes - program_bytes
        blocks = min(useful, room // size)
        said = (
            f"gpu_memory_utilization = {config.gpu_memory_utilization} of {limit / 2**30:.1f} GiB less weights "
            f"({weight_bytes / 2**30:.2f} GiB) and programs ({program_bytes / 2**30:.2f} GiB)"
        )
    if blocks < 1:
        raise NotEnoughMemory(
            f"no room for a single KV block of {size} bytes: {said}. Raise it, choose a smaller block_size or "
            f"max_num_batched_tokens, or a smaller dtype"
        )
    return blocks + 1


def tier_blocks(config: CacheConfig, model: ModelConfig, dtype: Any) -> tuple[int, int, int]:
    """How many blocks the host's pool, the disk's folder and the way to the disk hold.

    Raises:
      ConfigError: a tier is asked for that could not hold one block.
    """
    size = block_bytes(model, config.block_size, pages_dtype(config, dtype))
    for name in ("offload_host_bytes", "offload_disk_bytes"):
        given = getattr(config, name)
        require(not given or given >= size, name, given, f"at least the {size} bytes of one KV block, or 0")
    return config.offload_host_bytes // size, config.offload_disk_bytes // size, config.offload_staging_bytes // size
