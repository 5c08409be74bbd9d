"""Long rows when rows are few: several programs share a row, and a second small pass joins what they found.

Each program gives its part's softmax average, normalised, and the logarithm of its sum. With w = 2^(lse - max lse),
the row's answer is sum w o / sum w. Parts that had no tile say lse = MASKED and weigh nothing.
"""

import jax
import jax.numpy as jnp

from kernels_pallas.paged_attention.mosaic_gpu.softmax import MASKED

PROGRAMS = 264
"""Aimed at: 132 SMs, two programs each."""
SHORTEST = 4
"""Tiles that are worth a program of their own: the part's answer costs a trip through global memory."""
LSE_WIDTH = 32
"""A row's lse is stored 32 times: 128 bytes, the alignment of a TMA copy's row in shared memory."""


def choose_splits(rows: int, kv_heads: int, longest: int, tile_tokens: int) -> int:
    """By the shapes alone, for the number is compiled in; a program learns at run time how much of its row it has."""
    tiles = -(-longest // tile_tokens)
    return max(1, min(-(-PROGRAMS // (rows * kv_heads)), tiles // SHORTEST))


def combine(parts: jax.Array, lse: jax.Array) -> jax.Array:  # [X, B, N, H], [X, B, N, LSE_WIDTH] -> [B, N, H] float32
    lse = lse[..., :1]
    weights = jnp.where(lse > MASKED / 2, jnp.exp2(lse - lse.max(axis=0, keepdims=True)), 0.0)
    total = weights.sum(axis=0)
    # a part without a tile has nothing: not even zeros are promised
    joined = jnp.sum(jnp.where(weights > 0, parts * weights, 0.0), axis=0)
    return joined / jnp.maximum(total, 1e-30)
