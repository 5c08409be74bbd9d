"""Random weights made on the device: an 8B model in a second, nothing read and nothing sent."""

import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from bench.gpu.timing import normal
from jaxserve.models.config import ModelConfig
from jaxserve.models.registry import model_for

_CONTRACTED = {"wqkv": 1, "wo": 3, "w_gate_up": 1, "w_down": 1, "lm_head": 1}
"""How many leading axes a matrix is multiplied over."""


def device_params(config: ModelConfig) -> Any:
    """bfloat16 parameters that keep activations at unit scale."""

    def leaf_of(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        if name.endswith("norm"):
            return jnp.ones(leaf.shape, leaf.dtype)
        if name not in _CONTRACTED and name != "embed":
            return jnp.zeros(leaf.shape, leaf.dtype)
        fan_in = leaf.shape[-1] if name == "embed" else math.prod(leaf.shape[: _CONTRACTED[name]])
        return normal(zlib.crc32(jax.tree_util.keystr(path).encode()), leaf.shape, leaf.dtype, fan_in**-0.5)

    return jax.tree_util.tree_map_with_path(leaf_of, model_for(config).abstract_params(config, jnp.bfloat16))
