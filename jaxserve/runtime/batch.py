"""From a plan to the few small arrays that a step sends to the device.

Everything that a step needs is packed into one int32 array for the model and one for the sampler (floats by their
bits), so that a step costs two transfers. What lasts lives on the device, one row a slot:

    block tables   a step sends the block that each decode row writes to, and the tables of its prefill chunks
    tokens         a step sends its chunks' tokens; a sampled one stays where the sampler wrote it
    lengths        a step sends nothing: a decode row goes on where the sampler left off

Padding rows use the scratch slot, whose table is all zeros.

    model    decode:  slots [B]  columns [B] of the table (-1: padding)  blocks [B]
             prefill: tokens [T]  slots [R]  starts [R]  offsets [R + 1]  tables [R, W]
    sampler  one column a sampled row, decode rows first: see `SAMPLE_FIELDS`; positions are -1 where they are the
             slot's length

The arrays are made anew each step: on the CPU, JAX may read a NumPy array in place while the next step is prepared.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from jaxserve.core.plan import Admitted, Bucket, Row, StepPlan
from jaxserve.runtime.sampling.variant import Variant, variant_for

SAMPLE_INTS = ("slots", "positions", "prompt_lens", "min_positions", "seed_high", "seed_low", "top_k")
SAMPLE_FLOATS = ("temperature", "top_p", "min_p", "presence", "frequency", "repetition")
SAMPLE_FIELDS = SAMPLE_INTS + SAMPLE_FLOATS
NEUTRAL = dict.fromkeys(SAMPLE_FIELDS, 0.0) | {"top_p": 1.0, "repetition": 1.0}


def model_fields(bucket: Bucket, table_width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every field of the packed model input, in order."""
    decode, tokens, rows, _ = bucket
    yield from (("decode_slots", (decode,)), ("decode_columns", (decode,)), ("decode_blocks", (decode,)))
    yield from (("tokens", (tokens,)), ("slots", (rows,)), ("starts", (rows,)), ("offsets", (rows + 1,)))
    yield ("tables", (rows, table_width))


def packed_size(bucket: Bucket, table_width: int) -> int:
    return sum(math.prod(shape) for _, shape in model_fields(bucket, table_width))


def unpack_model(packed: Any, bucket: Bucket, table_width: int) -> dict[str, Any]:
    """Views of the packed array by name: NumPy on the host, static slices inside a program."""
    views: dict[str, Any] = {}
    begin = 0
    for name, shape in model_fields(bucket, table_width):
        size = math.prod(shape)
        views[name] = packed[begin : begin + size].reshape(shape)
        begin += size
    return views


def unpack_sample(packed: jax.Array) -> dict[str, jax.Array]:  # [fields, R]
    """Columns of the packed sampler input by name, floats as floats; inside a program."""
    ints = {name: packed[i] for i, name in enumerate(SAMPLE_INTS)}
    floats = jax.lax.bitcast_convert_type(packed[len(SAMPLE_INTS) :], np.float32)
    return ints | {name: floats[i] for i, name in enumerate(SAMPLE_FLOATS)}


class BatchBuilder:
    """Per-slot sampling parameters, kept in NumPy between steps, and the packing of each step."""

    def __init__(self, num_slots: int, table_width: int, block_size: int) -> None:
        self._scratch = num_slots
        self._table_width = table_width
        self._block_size = block_size
        self._params = np.zeros((len(SAMPLE_FIELDS), num_slots + 1), np.int32)
        floats = self._params[len(SAMPLE_INTS) :].view(np.float32)
        self._by_name: dict[str, NDArray[Any]] = {name: self._params[i] for i, name in enumerate(SAMPLE_INTS)}
        self._by_name |= {name: floats[i] for i, name in enumerate(SAMPLE_FLOATS)}
        for name, value in NEUTRAL.items():
            self._by_name[name][:] = value
        self._by_name["slots"][:] = np.arange(num_slots + 1)
        self._variants = np.zeros(num_slots + 1, np.int32)

    def load(self, admitted: Admitted) -> None:
        """Remember a newly admitted sequence's sampling parameters under its slot."""
        params, put, slot = admitted.params, self._by_name, admitted.slot
        self._variants[slot] = variant_for(params)
        put["prompt_lens"][slot] = admitted.num_prompt
        put["min_positions"][slot] = admitted.num_prompt + params.min_tokens
        seed = np.uint64(admitted.seed % 2**64)
        put["seed_high"][slot], put["seed_low"][slot] = np.array([seed >> np.uint64(32), seed], np.uint64).astype(
            np.int32
        )
        put["top_k"][slot] = min(params.top_k, 2**31 - 1)
        put["temperature"][slot], put["top_p"][slot], put["min_p"][slot] = (
            params.temperature,
            params.top_p,
            params.min_p,
        )
        put["presence"][slot], put["frequency"][slot] = params.presence_penalty, params.frequency_penalty
        put["repetition"][slot] = params.repetition_penalty

    def model_input(self, plan: StepPlan, bucket: Bucket) -> NDArray[np.int32]:  # [packed_size]
        packed, views = self._blank(bucket)
        if bucket.decode_rows:
            self._pack_decodes(plan.decodes, views)
        if bucket.prefill_rows:
            self._pack_prefills(plan.prefills, views)
        return packed

    def rehearsal_input(self, bucket: Bucket) -> NDArray[np.int32]:  # [packed_size]
        """Every row taken, by the scratch slot: a decode row of one token each, prompts as long as they may be."""
        packed, views = self._blank(bucket)
        views["decode_slots"][:] = views["slots"][:] = self._scratch
        longest = self._table_width * self._block_size
        views["offsets"][:] = np.minimum(np.arange(bucket.prefill_rows + 1) * longest, bucket.prefill_tokens)
        return packed

    def _blank(self, bucket: Bucket) -> tuple[NDArray[np.int32], dict[str, Any]]:
        """A packed model input, and its fields' views."""
        packed = np.zeros(packed_size(bucket, self._table_width), np.int32)
        return packed, unpack_model(packed, bucket, self._table_width)

    def sample_input(self, plan: StepPlan, bucket: Bucket) -> NDArray[np.int32]:  # [fields, R]
        slots = np.full(bucket.sample_rows, self._scratch, np.int32)
        positions = np.zeros(bucket.sample_rows, np.int32)
        decodes = len(plan.decodes)
        slots[:decodes] = [row.slot for row in plan.decodes]
        positions[:decodes] = -1
        for i, row in enumerate(plan.prefills, start=bucket.decode_rows):
            if row.wants.token:
                slots[i] = row.slot
                positions[i] = row.start + row.length
        packed = self._params[:, slots]
        packed[SAMPLE_FIELDS.index("positions")] = positions
        return packed

    def variant(self, plan: StepPlan) -> Variant:
        """The smallest sampling program that can express every row of the step."""
        slots = [row.slot for row in plan.rows if row.wants.token]
        return Variant(int(self._variants[slots].max(initial=0)))

    def _pack_decodes(self, rows: tuple[Row, ...], views: dict[str, NDArray[np.int32]]) -> None:
        n, size = len(rows), self._block_size
        views["decode_slots"][:] = self._scratch
        views["decode_columns"][:] = -1
        views["decode_slots"][:n] = [row.slot for row in rows]
        views["decode_columns"][:n] = [row.start // size for row in rows]
        views["decode_blocks"][:n] = [row.blocks[0] for row in rows]

    def _pack_prefills(self, rows: tuple[Row, ...], views: dict[str, NDArray[np.int32]]) -> None:
        views["slots"][:] = self._scratch
        offset = 0
        for i, row in enumerate(rows):
            end = offset + row.length
            views["tokens"][offset:end] = row.tokens
            views["slots"][i], views["starts"][i] = row.slot, row.start
            views["tables"][i, : len(row.blocks)] = row.blocks
            views["offsets"][i + 1] = offset = end
        views["offsets"][len(rows) + 1 :] = offset
