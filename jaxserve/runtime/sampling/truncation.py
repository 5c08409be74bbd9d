"""top_k and top_p without sorting the vocabulary.

Both keep the likeliest tokens down to a threshold. Weights in [0, 1] are ordered like their bit patterns, so thirty
halvings of the pattern find the threshold exactly, each one pass that counts or sums; sorting 8,192 logits takes a CPU
ten times as long. Tokens of equal weight at the threshold are kept from the lowest id up, as a stable sort would.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxserve.runtime.sampling.vocabulary_blocks import BLOCK, split_blocks, take_blocks

_ONE_BITS = 0x3F800000  # of 1.0, the largest weight
_STEPS = 30  # halvings from [0, 1.0] to one pattern


class _Cut(NamedTuple):
    """Keep every weight above `threshold`, and the first `ties` of those equal to it."""

    threshold: jax.Array  # [R]
    ties: jax.Array  # [R] int32


def truncate(weights: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:  # [R, V], [R], [R]
    """[R, V] bool: the top_k likeliest tokens (0: all), and of those the fewest whose share of mass reaches top_p.

    `weights` are probabilities relative to the likeliest token, whose weight is 1. At least one token is kept.
    """
    by_count = _cut_by_count(weights, top_k, top_k > 0)
    mass = _mass_above(weights, by_count.threshold) + by_count.ties.astype(jnp.float32) * by_count.threshold
    by_mass = _cut_by_mass(weights, top_p * mass, top_p < 1.0)
    return _keep(weights, _tighter(by_count, by_mass))


def _cut_by_count(weights: jax.Array, count: jax.Array, wanted: jax.Array) -> _Cut:
    threshold = _search(count, wanted, lambda t: _total((weights >= t[:, None]).astype(jnp.float32)))
    above = _total((weights > threshold[:, None]).astype(jnp.float32)).astype(jnp.int32)
    return _Cut(threshold, jnp.where(wanted, jnp.maximum(count - above, 1), weights.shape[1]))


def _cut_by_mass(weights: jax.Array, mass: jax.Array, wanted: jax.Array) -> _Cut:
    threshold = _search(mass, wanted, lambda t: _total(jnp.where(weights >= t[:, None], weights, 0.0)))
    missing = (mass - _mass_above(weights, threshold)) / jnp.maximum(threshold, jnp.finfo(jnp.float32).tiny)
    ties = jnp.clip(jnp.ceil(missing), 1, weights.shape[1]).astype(jnp.int32)
    return _Cut(threshold, jnp.where(wanted, ties, weights.shape[1]))


def _search(goal: jax.Array, wanted: jax.Array, reached_by: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """[R]: the largest threshold whose `reached_by` is still at least `goal`; 0 for a row that is not `wanted`."""
    goal = goal.astype(jnp.float32)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) // 2
        enough = reached_by(lax.bitcast_convert_type(middle, jnp.float32)) >= goal
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    start = jnp.zeros(goal.shape, jnp.int32), jnp.full(goal.shape, _ONE_BITS + 1, jnp.int32)
    # A CPU skips a search that no row wants. A GPU would have to ask the device first, and the host would wait.
    low, _ = lax.platform_dependent(
        cpu=lambda: lax.fori_loop(0, jnp.where(jnp.any(wanted), _STEPS, 0), halve, start),
        default=lambda: lax.fori_loop(0, _STEPS, halve, start),
    )
    return jnp.where(wanted, lax.bitcast_convert_type(low, jnp.float32), 0.0)


def _total(x: jax.Array) -> jax.Array:  # [R, V] -> [R]
    """The sum of each row; across blocks first, which vectorizes."""
    return jnp.sum(jnp.sum(split_blocks(x, 0), axis=1), axis=1)


def _mass_above(weights: jax.Array, threshold: jax.Array) -> jax.Array:
    return _total(jnp.where(weights > threshold[:, None], weights, 0.0))


def _tighter(a: _Cut, b: _Cut) -> _Cut:
    ties = jnp.where(a.threshold > b.threshold, a.ties, jnp.where(a.threshold < b.threshold, b.ties, 0))
    ties = jnp.where(a.threshold == b.threshold, jnp.minimum(a.ties, b.ties), ties)
    return _Cut(jnp.maximum(a.threshold, b.threshold), ties)


def _keep(weights: jax.Array, cut: _Cut) -> jax.Array:
    """Apply a cut: find the id of the last tie kept, block first."""
    tied = weights == cut.threshold[:, None]
    until = jnp.cumsum(jnp.sum(split_blocks(tied, False), axis=2, dtype=jnp.int32), axis=1)  # [R, blocks]
    ties = jnp.minimum(cut.ties, until[:, -1])
    block = jnp.sum(until < ties[:, None], axis=1, dtype=jnp.int32)
    before = jnp.where(block > 0, jnp.take_along_axis(until, jnp.maximum(block - 1, 0)[:, None], axis=1)[:, 0], 0)
    inside = jnp.cumsum(take_blocks(tied, block[:, None], False)[:, 0], axis=1, dtype=jnp.int32)
    last = block * BLOCK + jnp.sum(inside < (ties - before)[:, None], axis=1, dtype=jnp.int32)
    ids = lax.broadcasted_iota(jnp.int32, weights.shape, 1)
    return (weights > cut.threshold[:, None]) | (tied & (ids <= last[:, None]))
