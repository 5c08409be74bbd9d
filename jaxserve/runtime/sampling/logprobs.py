"""Log-probabilities of raw logits: of a token, its rank, and of the 20 likeliest tokens."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxserve.core.sampling import MAX_LOGPROBS
from jaxserve.runtime.sampling.vocabulary_blocks import split_blocks, top_tokens

PROMPT_CHUNK = 64

LogProbs = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def token_logprobs(logits: jax.Array, tokens: jax.Array) -> LogProbs:  # [R, V] float32, [R] int32
    """(log-probability [R], rank [R] from 1, top ids [R, 20], top log-probabilities [R, 20]).

    A rank is 1 + the number of strictly likelier tokens. A vocabulary below 20 tokens leaves ids from V on at -inf.
    """
    top, top_ids = top_tokens(logits, MAX_LOGPROBS)
    peak = jnp.maximum(top[:, :1], jnp.finfo(jnp.float32).min)
    mass = jnp.sum(jnp.sum(split_blocks(jnp.exp(logits - peak), 0.0), axis=1), axis=1, keepdims=True)
    total = peak + jnp.log(mass)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=1)
    above = jnp.sum(jnp.sum(split_blocks(logits > chosen, False), axis=1, dtype=jnp.int32), axis=1)
    return (chosen - total)[:, 0], above + 1, top_ids, top - total


def prompt_logprobs(
    logits_fn: Callable[[jax.Array], jax.Array],
    hidden: jax.Array,  # [T, D]
    targets: jax.Array,  # [T] int32
    *,
    chunk: int = PROMPT_CHUNK,
) -> LogProbs:
    """`token_logprobs` of each target under the logits at its position, `chunk` positions at a time.

    `logits_fn` turns hidden states [t, D] into logits [t, V]; [T, V] is never held whole.
    """
    length = hidden.shape[0]
    if length <= chunk:
        return token_logprobs(logits_fn(hidden).astype(jnp.float32), targets)
    padding = -length % chunk
    hidden = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(-1, chunk, hidden.shape[1])
    targets = jnp.pad(targets, (0, padding)).reshape(-1, chunk)
    parts = lax.map(lambda part: token_logprobs(logits_fn(part[0]).astype(jnp.float32), part[1]), (hidden, targets))
    flat = [x.reshape(-1, *x.shape[2:])[:length] for x in parts]
    return flat[0], flat[1], flat[2], flat[3]
