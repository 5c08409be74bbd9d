"""Logits to tokens, on the device: pure functions, one row a token to be sampled, every parameter an array.

A token is the argmax of log-weight plus Gumbel noise, drawn in two levels: first the block of 128 tokens by its mass,
then the token inside it. That is the same distribution as noise on each of V tokens, for V / 128 + 128 random numbers.
The noise comes from the row's seed and position alone, so that a token does not depend on what else is in the batch.

A row has no token if the model's logits hold NaN or +inf or nothing above -inf, or if bans and a processor leave NaN or
nothing above -inf. With +inf in the place of NaN, which a CPU's maximum may pass over, the largest logit tells; argmax
needs the maxima of its blocks in any case.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxserve.core.errors import ConfigError
from jaxserve.core.plan import NO_TOKEN
from jaxserve.core.sampling import MAX_BANNED, MAX_LOGIT_BIAS
from jaxserve.runtime.sampling.logprobs import prompt_logprobs, token_logprobs
from jaxserve.runtime.sampling.truncation import truncate
from jaxserve.runtime.sampling.variant import MIN_TEMPERATURE, Variant
from jaxserve.runtime.sampling.vocabulary_blocks import BLOCK, argmax, peak, split_blocks, take_blocks

__all__ = [
    "LogitsState",
    "Processor",
    "RowParams",
    "Sampled",
    "SlotState",
    "Variant",
    "init_slot_state",
    "load_slot",
    "prompt_logprobs",
    "sample",
]


class SlotState(NamedTuple):
    """What the sampler remembers of each running slot; the last row is scratch, for padding rows."""

    tokens: jax.Array  # [slots + 1, C] int32, by position
    bias_ids: jax.Array  # [slots + 1, 300] int32; V where unused
    bias_values: jax.Array  # [slots + 1, 300] float32
    ban_ids: jax.Array  # [slots + 1, 72] int32; V where unused
    lengths: jax.Array  # [slots + 1] int32, tokens known after the last one sampled: where a decode row goes on


class RowParams(NamedTuple):
    """One entry a sampled row. `positions` is the sampled token's own: the number of tokens before it."""

    slots: jax.Array  # [R] int32
    positions: jax.Array  # [R] int32
    prompt_lens: jax.Array  # [R] int32
    min_positions: jax.Array  # [R] int32; below it the slot's `ban_ids` are banned
    seeds: jax.Array  # [R, 2] uint32, high word first
    temperature: jax.Array  # [R] float32, as are the five below
    top_p: jax.Array
    min_p: jax.Array
    presence: jax.Array
    frequency: jax.Array
    repetition: jax.Array
    top_k: jax.Array  # [R] int32


class Sampled(NamedTuple):
    """The tokens; with `Variant.FULL` also what `logprobs` asks for, of the raw logits."""

    tokens: jax.Array  # [R] int32; NO_TOKEN where the logits are not finite
    logprobs: jax.Array | None = None  # [R] float32
    ranks: jax.Array | None = None  # [R] int32, 1: the likeliest
    top_ids: jax.Array | None = None  # [R, 20] int32
    top_logprobs: jax.Array | None = None  # [R, 20] float32


class LogitsState(NamedTuple):
    """What a processor of logits may look at, one entry a sampled row."""

    tokens: jax.Array  # [R, C] int32, prompt and output by position; from `rows.positions` on they mean nothing
    rows: RowParams


Processor = Callable[[jax.Array, LogitsState], jax.Array]
"""(logits [R, V], state) -> logits [R, V], float32: traced into the sampler, so that JAX's functions are all it may
use. Rows are independent of each other; -inf bans a token, +inf forces one. NaN, or a row of -inf alone, is an error of
the row's request."""


def init_slot_state(num_slots: int, context_len: int, vocab_size: int) -> SlotState:
    """The state of `num_slots` empty slots and the scratch slot."""
    rows = num_slots + 1
    return SlotState(
        tokens=jnp.zeros((rows, context_len), jnp.int32),
        bias_ids=jnp.full((rows, MAX_LOGIT_BIAS), vocab_size, jnp.int32),
        bias_values=jnp.zeros((rows, MAX_LOGIT_BIAS), jnp.float32),
        ban_ids=jnp.full((rows, MAX_BANNED), vocab_size, jnp.int32),
        lengths=jnp.zeros(rows, jnp.int32),
    )


def load_slot(
    state: SlotState,
    slot: jax.Array,  # [] int32
    tokens_row: jax.Array,  # [C] int32
    bias_ids: jax.Array,  # [300] int32
    bias_values: jax.Array,  # [300] float32
    ban_ids: jax.Array,  # [72] int32
) -> SlotState:
    """Replace what one slot's row holds, but its length, which the sampler sets; jit it with the state donated."""
    row = {"tokens": tokens_row, "bias_ids": bias_ids, "bias_values": bias_values, "ban_ids": ban_ids}
    return state._replace(**{name: getattr(state, name).at[slot].set(new) for name, new in row.items()})


def sample(
    logits: jax.Array,  # [R, V] float32
    rows: RowParams,
    state: SlotState,
    *,
    variant: Variant,
    processor: Processor | None = None,
) -> tuple[Sampled, SlotState]:
    """Sample a token a row, write it to `state.tokens[slot, position]`, and advance `state.lengths[slot]` past it.

    A row whose logits are not finite says `NO_TOKEN`; what is written for it is some token, for the step in flight.

    Each variant gives a row the same token if it can express the row's parameters. `processor`, only heeded by
    `Variant.FULL`, changes the logits after bans, biases and penalties, before the temperature.

    Raises:
      ConfigError: while tracing, the processor returns something of another shape.
    """
    if variant is Variant.FULL:
        tokens, sound, extra = _sample_full(logits, rows, state, processor)
    else:
        logits = _without_nan(lax.optimization_barrier(logits))
        tokens, sound, extra = argmax(logits), jnp.isfinite(peak(logits)), ()
        if variant is Variant.RANDOM:
            tokens = jnp.where(_is_greedy(rows), tokens, _draw(logits, rows))
    written = state.tokens.at[rows.slots, rows.positions].set(tokens, mode="drop")
    lengths = state.lengths.at[rows.slots].set(rows.positions + 1, mode="drop")
    return Sampled(jnp.where(sound, tokens, NO_TOKEN), *extra), state._replace(tokens=written, lengths=lengths)


def _sample_full(
    logits: jax.Array, rows: RowParams, state: SlotState, processor: Processor | None
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
    """(tokens, which rows have one, log-probabilities)"""
    logits = _without_nan(logits)
    processed = _penalize(_bias(logits, rows, state), rows, state)
    if processor is not None:
        processed = _processed(processor, processed, LogitsState(state.tokens[rows.slots], rows))
    weights = lax.optimization_barrier(_weights(processed, rows))
    weights = jnp.where(weights >= rows.min_p[:, None], weights, 0.0)
    kept = truncate(weights, rows.top_k, rows.top_p) & (weights > 0.0)
    # From here on the very operations of the other variants on a materialized array, so that every rounding is theirs.
    processed, truncated = lax.optimization_barrier((processed, jnp.where(kept, processed, -jnp.inf)))
    tokens = jnp.where(_is_greedy(rows), argmax(processed), _draw(truncated, rows))
    sound = jnp.isfinite(peak(logits)) & (peak(processed) > -jnp.inf) & ~jnp.any(jnp.isnan(processed), axis=1)
    return tokens, sound, token_logprobs(logits, tokens)


def _without_nan(logits: jax.Array) -> jax.Array:
    return jnp.where(logits < jnp.inf, logits, jnp.inf)


def _processed(processor: Processor, logits: jax.Array, state: LogitsState) -> jax.Array:
    found = processor(logits, state)
    if getattr(found, "shape", None) != logits.shape:
        rows, size = logits.shape
        name, shape = getattr(processor, "__name__", "?"), list(getattr(found, "shape", ()))
        returned = f"an array {shape}" if hasattr(found, "shape") else f"a {type(found).__name__}"
        raise ConfigError(
            f"logits_processor = {name} cannot work: for logits [R, V] = [{rows}, {size}] it returned {returned}: give "
            f"a function that returns logits of the same shape, -inf for what is banned"
        )
    return found.astype(jnp.float32)


def _is_greedy(rows: RowParams) -> jax.Array:  # [R] bool
    return (rows.temperature < MIN_TEMPERATURE) | (rows.top_k == 1)


def _bias(logits: jax.Array, rows: RowParams, state: SlotState) -> jax.Array:
    """Add each slot's `logit_bias`, then ban what may not come yet."""
    size = logits.shape[1]
    row = jnp.arange(logits.shape[0], dtype=jnp.int32)[:, None]
    biased = logits.at[row, state.bias_ids[rows.slots]].add(state.bias_values[rows.slots], mode="drop")
    early = rows.positions < rows.min_positions
    banned = jnp.where(early[:, None], state.ban_ids[rows.slots], size)
    return biased.at[row, banned].set(-jnp.inf, mode="drop")


def _penalize(logits: jax.Array, rows: RowParams, state: SlotState) -> jax.Array:
    """Repetition over prompt and output, presence and frequency over the output alone."""
    size = logits.shape[1]
    row = jnp.arange(logits.shape[0], dtype=jnp.int32)[:, None]
    history = state.tokens[rows.slots]  # [R, C]
    index = lax.broadcasted_iota(jnp.int32, history.shape, 1)
    before = index < rows.positions[:, None]
    output = before & (index >= rows.prompt_lens[:, None])

    seen = jnp.zeros(logits.shape, jnp.bool).at[row, jnp.where(before, history, size)].set(True, mode="drop")
    counts = jnp.zeros(logits.shape, jnp.int32).at[row, jnp.where(output, history, size)].add(1, mode="drop")
    repetition = rows.repetition[:, None]
    repeated = jnp.where(logits > 0.0, logits / repetition, logits * repetition)
    penalty = counts.astype(jnp.float32) * rows.frequency[:, None] + jnp.where(counts >= 1, rows.presence[:, None], 0.0)
    return jnp.where(seen, repeated, logits) - penalty


def _weights(logits: jax.Array, rows: RowParams) -> jax.Array:
    """[R, V]: each token's probability over the likeliest one's, at the row's temperature; 0 for one at -inf."""
    peak = jnp.max(jnp.max(split_blocks(logits, -jnp.inf), axis=2), axis=1, keepdims=True)
    peak = jnp.maximum(peak, jnp.finfo(jnp.float32).min)  # all at -inf: no NaN
    scaled = (logits - peak) / jnp.maximum(rows.temperature, MIN_TEMPERATURE)[:, None]
    return jnp.where(logits == jnp.inf, 1.0, jnp.exp(scaled))  # a processor may force tokens with +inf


def _draw(logits: jax.Array, rows: RowParams) -> jax.Array:
    """[R] int32: a token with probability in proportion to its weight."""
    weights = _weights(logits, rows)
    mass = jnp.sum(split_blocks(weights, 0.0), axis=2)  # [R, blocks]
    noise = _gumbel(rows, mass.shape[1] + BLOCK)
    block = lax.argmax(jnp.log(mass) + noise[:, BLOCK:], 1, jnp.int32)
    chosen = take_blocks(weights, block[:, None], 0.0)[:, 0]
    inside = lax.argmax(jnp.log(chosen) + noise[:, :BLOCK], 1, jnp.int32)
    return block * BLOCK + inside


def _gumbel(rows: RowParams, count: int) -> jax.Array:
    """[R, count] float32: finite standard Gumbel noise from each row's seed and position."""

    def bits_of(seed: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), position)
        return jax.random.bits(key, (count,), jnp.uint32)

    return _as_gumbel(jax.vmap(bits_of)(rows.seeds, rows.positions))


def _as_gumbel(bits: jax.Array) -> jax.Array:  # uint32
    # All 32 bits: the rarest tokens live where the uniform is near 0, where float32 is finest.
    uniform = jnp.minimum(bits.astype(jnp.float32) * 2.0**-32 + 2.0**-33, 1.0 - 2.0**-24)
    return -jnp.log(-jnp.log1p(-uniform))
