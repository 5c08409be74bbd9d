"""The online softmax of a tile of scores, in base 2.

With c = scale * log2(e), weights are 2^(c s - m): one multiply-add and one `ex2` an element. A running maximum `m`, a
running sum, and an accumulator that is rescaled when the maximum grows (Milakov and Gimelshein, 2018; Dao, 2022):

    m' = max(m, max c s)    sum' = sum 2^(m-m') + sum_s 2^(c s-m')    acc' = acc 2^(m-m') + 2^(c s-m') V
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernels_pallas.paged_attention.mosaic_gpu.operations import M, Operations

LOG2E = math.log2(math.e)
MASKED = -1e30
"""Of a score. Finite, and so far below FLOOR that it weighs nothing against it, whatever the scale."""
FLOOR = -1e20
"""Of m. A row of which a whole tile is masked keeps it: were m the rounded MASKED c, a multiply-add of MASKED c - m
would give not 0 but the rounding, 1e22, and 2^1e22 is infinite."""


class Softmax(NamedTuple):
    acc: jax.Array  # [M, H] float32
    m: jax.Array  # [M] float32, in powers of 2
    total: jax.Array  # [M] float32


def start(ops: Operations, head_dim: int, sink: jax.Array | None) -> Softmax:
    """Nothing seen yet, or only the sink, a logit [M] with no value."""
    if sink is None:
        return Softmax(ops.accumulator(head_dim), ops.rows(FLOOR), ops.rows(0.0))
    return Softmax(ops.accumulator(head_dim), jnp.maximum(sink * LOG2E, FLOOR), ops.rows(1.0))


def over_rows(x: jax.Array, width: int) -> jax.Array:
    """[M] -> [M, width]"""
    return lax.broadcast_in_dim(x, (M, width), [0])


def over_columns(x: jax.Array) -> jax.Array:
    """[C] -> [M, C]"""
    return lax.broadcast_in_dim(x, (M, x.shape[0]), [1])


def capped(scores: jax.Array, scale: float, soft_cap: float | None) -> tuple[jax.Array, float]:
    """Raw products to `(scores, c)` such that c * scores are the logits in powers of 2, the cap included."""
    if soft_cap is None:
        return scores, scale * LOG2E
    # cap tanh(x / cap) = cap - 2 cap / (e^(2 x / cap) + 1): the hardware's tanh is good to 11 bits only
    grown = jnp.exp2(scores * (2 * scale / soft_cap * LOG2E))
    return 1.0 - 2.0 / (grown + 1.0), soft_cap * LOG2E


def weigh(state: Softmax, scores: jax.Array, c: float) -> tuple[Softmax, jax.Array]:
    """The tile's weights [M, C] float32, and the state brought to the new maximum, the tile's values not yet added."""
    m = jnp.maximum(state.m, scores.max(axis=1) * c)
    keep = jnp.exp2(state.m - m)
    weights = jnp.exp2(scores * c - over_rows(m, scores.shape[1]))
    acc = state.acc * over_rows(keep, state.acc.shape[1])
    return Softmax(acc, m, state.total * keep + weights.sum(axis=1)), weights


def finish(state: Softmax) -> jax.Array:  # [M, H] float32; zeros where nothing was seen
    inverse = 1.0 / jnp.maximum(state.total, 1e-30)
    return state.acc * over_rows(inverse, state.acc.shape[1])


def log_sum(state: Softmax) -> jax.Array:  # [M] float32
    """log2 of the sum of 2^logit; MASKED where nothing was seen."""
    return jnp.where(state.total > 0, state.m + jnp.log2(jnp.maximum(state.total, 1e-30)), MASKED)
