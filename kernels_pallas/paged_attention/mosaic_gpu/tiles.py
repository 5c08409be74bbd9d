"""Tile sizes and ring lengths."""

from typing import NamedTuple

import jax.numpy as jnp


class DecodeTile(NamedTuple):
    tokens: int
    stages: int


class PrefillTile(NamedTuple):
    tokens: int
    stages: int
    computing: int = 2


def decode_tile(head_dim, page_size, kv_dtype):
    wide = jnp.dtype(kv_dtype).itemsize
    tokens = 64 if head_dim == 256 else max(64, page_size)
    stages = 3 if tokens * head_dim * wide <= 8192 else 2
    return DecodeTile(tokens, stages)


def prefill_tile(head_dim, page_size, kv_dtype):
    wide = jnp.dtype(kv_dtype).itemsize
    tokens = 64 if head_dim == 256 or wide == 1 else 128
    return PrefillTile(tokens, 1 if head_dim == 256 and wide == 1 else 2, 1 if head_dim == 256 and wide == 1 else 2)
