"""The sizes and types of one engine: all that its programs, its device state and its tiers are made from."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxserve.core.buckets import BucketTable
from jaxserve.core.config import EngineConfig
from jaxserve.core.sections import CacheConfig
from jaxserve.core.settings import require
from jaxserve.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Geometry:
    """Block counts are of KV blocks of `block_size` tokens, all layers together."""

    model: ModelConfig
    dtype: jnp.dtype
    """Of weights and activations."""
    page_dtype: jnp.dtype
    """Of keys and values in the cache."""
    buckets: BucketTable
    max_len: int
    """Tokens of the longest sequence."""
    num_slots: int
    """Sequences that run at once; the device state has one slot more, for padding."""
    block_size: int
    num_blocks: int
    """On the device, the scratch block included."""
    host_blocks: int = 0
    disk_blocks: int = 0
    staging_blocks: int = 0
    """Sizes of the offload tiers; 0: none."""

    @classmethod
    def of(cls, model: ModelConfig, config: EngineConfig, dtype: Any, num_blocks: int) -> "Geometry":
        """What a configuration makes of a model, without tiers.

        Raises:
          ConfigError: max_model_len is more than the model declares.
        """
        max_len = config.model.max_model_len or model.context_length
        require(
            max_len <= model.context_length, "max_model_len", max_len,
            f"at most {model.context_length}, the length that the model declares",
        )  # fmt: skip
        return cls(
            model,
            jnp.dtype(dtype),
            pages_dtype(config.cache, dtype),
            BucketTable.from_config(config.buckets, config.scheduler, deterministic=config.runtime.deterministic),
            max_len,
            config.scheduler.max_num_seqs,
            config.cache.block_size,
            num_blocks,
        )

    @property
    def table_width(self) -> int:
        """Blocks in a block table."""
        return -(-self.max_len // self.block_size)

    @property
    def context(self) -> int:
        """Tokens that a full block table holds: at least `max_len`."""
        return self.table_width * self.block_size


def pages_dtype(config: CacheConfig, dtype: Any) -> jnp.dtype:
    """The type of the pages, where weights and activations are of `dtype`."""
    return jnp.dtype(dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype)
