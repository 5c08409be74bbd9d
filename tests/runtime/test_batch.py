"""What a step sends: plans packed into arrays, and the parameters that a slot keeps from its admission on."""

import numpy as np
import pytest

from jaxserve.core.plan import NOTHING, ONE_TOKEN, Admitted, Bucket, Row, StepPlan
from jaxserve.core.sampling import SamplingParams
from jaxserve.runtime.batch import SAMPLE_FIELDS, SAMPLE_INTS, BatchBuilder, unpack_model
from jaxserve.runtime.sampling.variant import Variant

SLOTS, WIDTH, BLOCK = 4, 8, 16
BUCKET = Bucket(decode_rows=2, prefill_tokens=16, prefill_rows=3, sample_rows=5)
SCRATCH = SLOTS
PARAMS = SamplingParams(
    max_tokens=9, min_tokens=6, temperature=0.5, top_k=7, top_p=0.9, min_p=0.1, presence_penalty=0.2,
    frequency_penalty=0.3, repetition_penalty=1.4,
)  # fmt: skip
DECODE = Row(slot=1, start=17, length=1, wants=ONE_TOKEN, blocks=(5,))
LAST_CHUNK = Row(slot=3, start=16, length=3, wants=ONE_TOKEN, tokens=[7, 8, 9], blocks=(2, 6))
A_CHUNK = Row(slot=0, start=0, length=4, wants=NOTHING, tokens=[1, 2, 3, 4], blocks=(3,))
PLAN = StepPlan(1, (DECODE,), (LAST_CHUNK, A_CHUNK), BUCKET)


def admitted(slot: int, params: SamplingParams, prompt: int = 19, seed: int = 0) -> Admitted:
    return Admitted(slot, str(slot), 0, params, seed, prompt, tuple(range(prompt)), frozenset({2}))


@pytest.fixture
def batch() -> BatchBuilder:
    builder = BatchBuilder(SLOTS, WIDTH, BLOCK)
    builder.load(admitted(3, PARAMS, seed=(7 << 32) + 5))
    builder.load(admitted(1, SamplingParams(temperature=0.0), prompt=11))
    return builder


def columns(batch: BatchBuilder) -> dict[str, np.ndarray]:
    packed = batch.sample_input(PLAN, BUCKET)
    floats = packed[len(SAMPLE_INTS) :].view(np.float32)
    return dict(zip(SAMPLE_FIELDS, (*packed[: len(SAMPLE_INTS)], *floats), strict=True))


def test_the_sampler_gets_a_slots_parameters_under_its_row(batch: BatchBuilder) -> None:
    found = columns(batch)
    assert found["slots"].tolist() == [1, SCRATCH, 3, SCRATCH, SCRATCH], (
        "only rows that want a token, each in its place"
    )
    assert found["positions"].tolist() == [-1, 0, 19, 0, 0], "a decode row's is its slot's length, on the device"
    assert found["prompt_lens"].tolist() == [11, 0, 19, 0, 0]
    assert found["min_positions"][2] == 19 + PARAMS.min_tokens, "ends are banned behind the prompt"
    assert (found["seed_high"][2], found["seed_low"][2]) == (7, 5)
    wanted = {"top_k": 7, "temperature": 0.5, "top_p": 0.9, "min_p": 0.1}
    wanted |= {"presence": 0.2, "frequency": 0.3, "repetition": 1.4}
    assert {name: pytest.approx(found[name][2]) for name in wanted} == wanted
    assert found["repetition"][1] == found["top_p"][1] == 1.0, "padding changes nothing"


def test_the_model_gets_what_the_device_does_not_know(batch: BatchBuilder) -> None:
    views = unpack_model(batch.model_input(PLAN, BUCKET), BUCKET, WIDTH)
    assert views["decode_slots"].tolist() == [1, SCRATCH]
    assert views["decode_columns"].tolist() == [1, -1] and views["decode_blocks"].tolist() == [5, 0]
    assert views["tokens"].tolist() == [7, 8, 9, 1, 2, 3, 4] + [0] * 9
    assert (views["slots"].tolist(), views["starts"].tolist()) == ([3, 0, SCRATCH], [16, 0, 0])
    assert views["offsets"].tolist() == [0, 3, 7, 7], "a padding row has no tokens"
    assert views["tables"].tolist() == [[2, 6, 0, 0, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0, 0, 0], [0] * WIDTH]


@pytest.mark.parametrize(("start", "column"), [(15, 0), (16, 1), (31, 1), (32, 2)])
def test_a_decode_row_updates_the_column_of_the_block_that_it_writes_to(
    batch: BatchBuilder, start: int, column: int
) -> None:
    views = unpack_model(
        batch.model_input(StepPlan(1, (DECODE._replace(start=start),), (), BUCKET), BUCKET), BUCKET, WIDTH
    )
    assert views["decode_columns"].tolist() == [column, -1]


def test_the_variant_is_the_largest_of_the_rows_that_sample(batch: BatchBuilder) -> None:
    assert batch.variant(PLAN) is Variant.FULL
    batch.load(admitted(0, PARAMS))
    batch.load(admitted(3, SamplingParams(temperature=0.7)))
    assert batch.variant(PLAN) is Variant.RANDOM, "a chunk that samples nothing does not count"
    assert batch.variant(StepPlan(2, (DECODE,), (), BUCKET)) is Variant.GREEDY
    assert batch.variant(StepPlan(3, (), (A_CHUNK,), BUCKET)) is Variant.GREEDY


def test_a_seed_and_a_top_k_of_any_size_fit_into_their_columns(batch: BatchBuilder) -> None:
    batch.load(admitted(3, SamplingParams(top_k=2**31 + 1), seed=2**64 - 2))
    found = columns(batch)
    assert (found["seed_high"][2], found["seed_low"][2]) == (-1, -2), "all 64 bits"
    assert found["top_k"][2] == 2**31 - 1, "every token"
