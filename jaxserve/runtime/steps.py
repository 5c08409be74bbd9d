"""The jitted programs of a step. Two run in turn:

    model    tokens in, keys and values written to their pages, logits of the rows that sample
    sample   logits to tokens, which stay on the device as the next step's input

plus one that loads a slot on admission, and one that scores prompts. Each is a pure function of (parameters, device
state, one packed array); the state is donated and comes back, so nothing is copied.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxserve.core.plan import Bucket
from jaxserve.models.config import ModelConfig
from jaxserve.models.decoder import Decoder
from jaxserve.runtime.batch import unpack_model, unpack_sample
from jaxserve.runtime.kv_cache import KVCache
from jaxserve.runtime.sampling.sampler import RowParams, Sampled, SlotState, Variant, prompt_logprobs, sample
from kernels_pallas.paged_attention import api as paged_attention
from kernels_pallas.pages import Pages
from kernels_pallas.write_kv import write

_STATIC = ("scale", "sliding_window", "soft_cap", "backend", "interpret", "debug")
_decode = jax.jit(paged_attention.decode, static_argnames=_STATIC)
_prefill = jax.jit(paged_attention.prefill, static_argnames=_STATIC)
"""Jitted, so that a program's layers are lowered as calls of one function: a kernel is built once, not once a layer."""


class ModelState(NamedTuple):
    """What the model program owns: it is donated to each step and comes back changed in place."""

    cache: KVCache
    tables: jax.Array  # [slots + 1, W] block ids by slot; the last row is the scratch slot's


class Prefilled(NamedTuple):
    """The prefill tokens of a step on their way into the last layer, for prompt log-probabilities."""

    hidden: jax.Array  # [T, D]
    positions: jax.Array  # [T]
    tables: jax.Array  # [R, W]
    offsets: jax.Array  # [R + 1]
    context_lengths: jax.Array  # [R]


class ModelOutput(NamedTuple):
    logits: jax.Array  # [sample_rows, V] of the decode rows and of each chunk's last token
    prefilled: Prefilled


class _Layout(NamedTuple):
    """Where each token of a step is in its sequence and in the cache.

    The last layer takes every row, decode or chunk, as one query: the last three fields. Where nothing is prefilled
    these are the decode rows again.
    """

    tokens: jax.Array  # [B + T]
    positions: jax.Array  # [B + T]
    cache_slots: jax.Array  # [B + T] page * S + offset; 0 for padding
    firsts: jax.Array  # [B + R] the token that is each row's first
    decode_tables: jax.Array  # [B, W]
    decode_lengths: jax.Array  # [B]
    prefill_tables: jax.Array  # [R, W]
    offsets: jax.Array  # [R + 1]
    context_lengths: jax.Array  # [R]
    ends: jax.Array  # [B + R] the token that is each row's last
    end_tables: jax.Array  # [B + R, W]
    end_lengths: jax.Array  # [B + R] tokens that each row's last one sees


def model_step(
    params: Any,
    state: ModelState,
    slot_tokens: jax.Array,  # [slots + 1, C]
    slot_lengths: jax.Array,  # [slots + 1]
    packed: jax.Array,  # see runtime.batch
    *,
    model: Decoder,
    config: ModelConfig,
    bucket: Bucket,
    attention: Mapping[str, Any],
) -> tuple[ModelState, ModelOutput]:
    """One forward pass over a bucket's tokens; `attention`: backend, interpret and debug of the attention calls."""
    with jax.named_scope("lay_out"):
        history = slot_tokens, slot_lengths
        tables, layout = _lay_out(state.tables, *history, packed, bucket, block_size=state.cache[0].keys.shape[2])
    cache = list(state.cache)
    rows, last_layer = bucket.decode_rows, config.num_layers - 1

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, *, sliding_window: int | None = None) -> jax.Array:
        cache[layer] = pages = write(cache[layer], k, v, layout.cache_slots, layout.firsts)
        options: dict[str, Any] = {"sliding_window": sliding_window, **attention}
        if layer == last_layer:  # one query a row, its last token's
            with jax.named_scope("paged_decode"):
                return _decode(q, pages, layout.end_tables, layout.end_lengths, **options)
        parts: list[jax.Array] = []
        if rows:
            lengths = layout.decode_lengths
            with jax.named_scope("paged_decode"):
                parts.append(_decode(q[:rows], pages, layout.decode_tables, lengths, **options))
        if bucket.prefill_tokens:
            where = layout.prefill_tables, layout.offsets, layout.context_lengths
            with jax.named_scope("paged_prefill"):
                parts.append(_prefill(q[rows:], pages, *where, **options))
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)

    x = model.body(params, config, layout.tokens, layout.positions, attend)
    hidden = model.ending(params, config, x, layout.positions, attend, layout.ends if bucket.prefill_tokens else None)
    with jax.named_scope("logits"):
        padding = bucket.sample_rows - hidden.shape[0]
        logits = model.logits(params, config, jnp.pad(hidden, ((0, padding), (0, 0))))
    prefilled = Prefilled(
        x[rows:], layout.positions[rows:], layout.prefill_tables, layout.offsets, layout.context_lengths
    )
    return ModelState(tuple(cache), tables), ModelOutput(logits, prefilled)


def _lay_out(
    tables: jax.Array,
    slot_tokens: jax.Array,
    slot_lengths: jax.Array,
    packed: jax.Array,
    bucket: Bucket,
    block_size: int,
) -> tuple[jax.Array, _Layout]:
    """Take the packed input apart, bring the block tables up to date, and place every token."""
    given = unpack_model(packed, bucket, tables.shape[1])
    column = given["decode_columns"]
    real = column >= 0  # and no padding
    decode_at = jnp.maximum(slot_lengths[given["decode_slots"]] - 1, 0)  # the token sampled last
    tables = tables.at[given["decode_slots"], jnp.maximum(column, 0)].set(given["decode_blocks"])
    tables = tables.at[given["slots"]].set(given["tables"])

    index = jnp.arange(bucket.prefill_tokens, dtype=jnp.int32)
    offsets, starts = given["offsets"], given["starts"]
    row = jnp.sum(index[:, None] >= offsets[None, 1:], axis=1, dtype=jnp.int32)  # [T]; R for padding
    inside = index < offsets[-1]
    row = jnp.minimum(row, max(bucket.prefill_rows - 1, 0))
    prefill_at = jnp.where(inside, starts[row] + index - offsets[row], 0) if bucket.prefill_rows else index
    page = given["tables"][row, prefill_at // block_size] if bucket.prefill_rows else index

    decode_cache_slots = given["decode_blocks"] * block_size + decode_at % block_size
    prefill_cache_slots = jnp.where(inside, page * block_size + prefill_at % block_size, 0)
    rows = jnp.arange(bucket.decode_rows, dtype=jnp.int32)
    last_token = bucket.tokens - 1
    decode_tables, decode_lengths = tables[given["decode_slots"]], jnp.where(real, decode_at + 1, 0)
    context_lengths = starts + offsets[1:] - offsets[:-1]
    return tables, _Layout(
        tokens=jnp.concatenate([slot_tokens[given["decode_slots"], decode_at], given["tokens"]]),
        positions=jnp.concatenate([decode_at, prefill_at]),
        cache_slots=jnp.concatenate([jnp.where(real, decode_cache_slots, 0), prefill_cache_slots]),
        firsts=jnp.concatenate([rows, jnp.minimum(bucket.decode_rows + offsets[:-1], last_token)]),
        decode_tables=decode_tables,
        decode_lengths=decode_lengths,
        prefill_tables=given["tables"],
        offsets=offsets,
        context_lengths=context_lengths,
        ends=jnp.concatenate([rows, bucket.decode_rows + jnp.maximum(offsets[1:] - 1, 0)]),
        end_tables=jnp.concatenate([decode_tables, given["tables"]]),
        end_lengths=jnp.concatenate([decode_lengths, context_lengths]),
    )


def sample_step(
    logits: jax.Array,  # [R, V]
    state: SlotState,
    packed: jax.Array,  # [fields, R]
    *,
    variant: Variant,
    processor: Any = None,
) -> tuple[Sampled, SlotState]:
    """Sample a token a row and remember it under the row's slot."""
    given = unpack_sample(packed)
    given["positions"] = jnp.where(given["positions"] < 0, state.lengths[given["slots"]], given["positions"])
    seeds = jnp.stack([given.pop("seed_high"), given.pop("seed_low")], axis=1)
    rows = RowParams(seeds=jax.lax.bitcast_convert_type(seeds, jnp.uint32), **given)
    with jax.named_scope("sample"):
        return sample(logits, rows, state, variant=variant, processor=processor)


def score_step(
    params: Any,
    pages: Pages,  # of the last layer, which the step has written
    prefilled: Prefilled,
    targets: jax.Array,  # [T]
    *,
    model: Decoder,
    config: ModelConfig,
    attention: Mapping[str, Any],
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The last layer for every prefill token, which a step computes for the rows' ends only. Then the log-probability
    and rank of each target after its position, and the 20 likeliest there."""
    where = prefilled.tables, prefilled.offsets, prefilled.context_lengths

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, *, sliding_window: int | None = None) -> jax.Array:
        with jax.named_scope("paged_prefill"):
            return _prefill(q, pages, *where, sliding_window=sliding_window, **attention)

    with jax.named_scope("score"):
        hidden = model.ending(params, config, prefilled.hidden, prefilled.positions, attend)
        return prompt_logprobs(lambda part: model.logits(params, config, part), hidden, targets)
