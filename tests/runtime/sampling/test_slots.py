"""What an admission loads into a slot: the history and the lists that its sampler reads, and no former sequence's."""

import numpy as np
import pytest

from jaxserve.core.plan import Admitted
from jaxserve.core.sampling import SamplingParams
from jaxserve.runtime.sampling.slots import SlotLoader, SlotRow

CONTEXT, VOCAB = 16, 50
UNUSED = {VOCAB}
PLAIN = SamplingParams()


def load(loader: SlotLoader, params: SamplingParams, slot: int = 1, *, history: bool = False) -> SlotRow | None:
    """Of a sequence that was preempted: three prompt tokens and two outputs."""
    admitted = Admitted(slot, "r", 0, params, 0, 3, (11, 12, 13, 14, 15), frozenset({9, 2}))
    return loader.row(admitted, history=history)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(presence_penalty=0.5),
        SamplingParams(frequency_penalty=0.5),
        SamplingParams(repetition_penalty=1.5),
        SamplingParams(logit_bias={3: 0.5}),
        SamplingParams(min_tokens=2),
    ],
    ids=["presence", "frequency", "repetition", "bias", "min_tokens"],
)
def test_what_reads_the_slot_is_loaded_with_the_outputs_too(params: SamplingParams) -> None:
    row = load(SlotLoader(CONTEXT, VOCAB), params)
    assert row is not None and row[0].tolist() == [11, 12, 13, 14, 15] + [0] * 11


def test_the_lists_are_the_requests() -> None:
    row = load(SlotLoader(CONTEXT, VOCAB), SamplingParams(logit_bias={3: 0.5, 7: -1.0}, min_tokens=2))
    assert row is not None
    _, bias_ids, bias_values, banned = row
    assert bias_ids[:2].tolist() == [3, 7] and bias_values[:2].tolist() == [0.5, -1.0]
    assert set(bias_ids[2:].tolist()) == UNUSED and not bias_values[2:].any()
    assert banned[:2].tolist() == [2, 9] and set(banned[2:].tolist()) == UNUSED


def test_without_min_tokens_no_end_is_banned() -> None:
    row = load(SlotLoader(CONTEXT, VOCAB), SamplingParams(logit_bias={3: 0.5}))
    assert row is not None and set(row[3].tolist()) == UNUSED


def test_a_former_sequences_lists_are_cleared_once() -> None:
    loader = SlotLoader(CONTEXT, VOCAB)
    assert load(loader, PLAIN) is None
    load(loader, SamplingParams(logit_bias={3: 0.5}, min_tokens=2))
    assert load(loader, PLAIN, slot=0) is None, "another slot holds nothing"
    row = load(loader, PLAIN)
    assert row is not None and {*row[1].tolist(), *row[3].tolist()} == UNUSED and not row[2].any()
    assert load(loader, PLAIN) is None


def test_a_processor_of_logits_has_every_history() -> None:
    loader = SlotLoader(CONTEXT, VOCAB)
    for _ in range(2):
        row = load(loader, PLAIN, history=True)
        assert row is not None and np.array_equal(row[0][:5], [11, 12, 13, 14, 15])
