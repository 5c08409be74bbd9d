"""A row of logits seen as blocks of 128 tokens: reduce each block in one pass over memory, then look into few of them.

Choosing one token in V this way reads the row once and does everything expensive (random numbers, logarithms, sorting)
on V / 128 + 128 numbers.
"""

import jax
import jax.numpy as jnp
from jax import lax

BLOCK = 128


def split_blocks(x: jax.Array, fill: float) -> jax.Array:  # [R, V]
    """[R, ceil(V / 128), 128], the last block filled up with `fill`."""
    rows, size = x.shape
    count = -(-size // BLOCK)
    if size % BLOCK:
        x = jnp.pad(x, ((0, 0), (0, count * BLOCK - size)), constant_values=fill)
    return x.reshape(rows, count, BLOCK)


def take_blocks(x: jax.Array, blocks: jax.Array, fill: float) -> jax.Array:  # [R, V], [R, n]
    """[R, n, 128]: the named blocks of each row, `fill` beyond the row's end."""
    rows, size = x.shape
    ids = block_ids(blocks)
    taken = jnp.take_along_axis(x, jnp.minimum(ids, size - 1).reshape(rows, -1), axis=1).reshape(ids.shape)
    return jnp.where(ids < size, taken, fill) if size % BLOCK else taken


def block_ids(blocks: jax.Array) -> jax.Array:  # [R, n]
    """[R, n, 128]: the token ids in the named blocks."""
    return blocks[:, :, None] * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)[None, None, :]


def argmax(x: jax.Array) -> jax.Array:  # [R, V]
    """[R] int32: the lowest id among the largest values, like `jnp.argmax`; with a NaN, some id."""
    block = lax.argmax(jnp.max(split_blocks(x, -jnp.inf), axis=2), 1, jnp.int32)
    inside = lax.argmax(take_blocks(x, block[:, None], -jnp.inf)[:, 0], 1, jnp.int32)
    return block * BLOCK + inside


def peak(x: jax.Array) -> jax.Array:  # [R, V]
    """[R]: the largest value. Beside `argmax` of the same array it reads nothing again. There must be no NaN."""
    return jnp.max(jnp.max(split_blocks(x, -jnp.inf), axis=2), axis=1)


def top_tokens(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:  # [R, V]
    """(values, ids), both [R, k], largest first, equal values by id; past the row's end -inf and ids from V on.

    The k largest lie in the k blocks whose maxima are largest, so that only k * 128 values are ever sorted.
    """
    blocks = split_blocks(x, -jnp.inf)
    count = blocks.shape[1]
    if count <= k:
        flat = blocks.reshape(x.shape[0], -1)
        if flat.shape[1] < k:
            flat = jnp.pad(flat, ((0, 0), (0, k - flat.shape[1])), constant_values=-jnp.inf)
        return _top_k(flat, k)
    _, best = _top_k(jnp.max(blocks, axis=2), k)
    best = lax.sort(best, dimension=1)  # by id again, so that equal values stay in id order
    candidates = take_blocks(x, best, -jnp.inf).reshape(x.shape[0], -1)
    values, where = _top_k(candidates, k)
    ids = jnp.take_along_axis(block_ids(best).reshape(x.shape[0], -1), where, axis=1)
    return values, ids


def _top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    # The barrier keeps a later slice of the result from turning this into a sort of the whole row (10 x on a CPU).
    values, ids = lax.optimization_barrier(lax.top_k(x, k))
    return values, ids
