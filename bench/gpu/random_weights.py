"""Random weights made on the device: an 8B model in a second, nothing read and nothing sent."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp

from bench.gpu.timing import normal
from jaxserve.models.config import ModelConfig
from jaxserve.models.leaves import Leaf
from jaxserve.models.registry import model_for


def device_params(config: ModelConfig) -> Any:
    """bfloat16 parameters that keep activations at unit scale."""

    def array_of(path: Any, leaf: Leaf) -> jax.Array:
        if not leaf.fan_in:
            return jnp.full(leaf.shape, leaf.fill, jnp.bfloat16)
        return normal(zlib.crc32(jax.tree_util.keystr(path).encode()), leaf.shape, jnp.bfloat16, leaf.inputs**-0.5)

    return jax.tree_util.tree_map_with_path(array_of, model_for(config).leaves(config))
