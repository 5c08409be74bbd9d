"""What a row wants, and which of its blocks others may share."""

import pytest

from jaxserve.core.plan import Wants
from jaxserve.core.sampling import SamplingParams
from jaxserve.core.sequence import Request, Sequence
from jaxserve.sched.packer import _wants
from tests.engine.conftest import BLOCK, build_engine, drive, request

PROMPT = list(range(10, 20))


@pytest.mark.parametrize(
    ("start", "end", "wants"),
    [
        (0, 4, Wants(False, None, 1, [11, 12, 13, 14])),
        (4, 10, Wants(True, 2, 1, [15, 16, 17, 18, 19])),
        (4, 9, Wants(False, None, 1, [15, 16, 17, 18, 19])),
        (4, 12, Wants(True, 2, 1, [15, 16, 17, 18, 19])),
        (9, 12, Wants(True, 2)),
        (10, 12, Wants(True, 2)),
    ],
    ids=["first", "last", "but the last token", "last, with outputs", "of the last token", "of outputs"],
)
def test_a_chunk_scores_the_prompts_next_tokens_and_no_outputs(start: int, end: int, wants: Wants) -> None:
    """A sequence that was preempted is computed again with the two outputs that it has."""
    params = SamplingParams(logprobs=2, prompt_logprobs=1)
    sequence = Sequence(Request(id="r", prompt=tuple(PROMPT), params=params), 0, 100, 0, [*PROMPT, 30, 31])
    assert _wants(sequence, start, end, samples=wants.token) == wants


def test_rows_want_what_the_request_asks_for() -> None:
    engine = build_engine(chunk_size=8)
    engine.add(request("scored", PROMPT, max_tokens=2, logprobs=3, prompt_logprobs=0))
    drive(engine)
    rows = [row.wants for plan in engine.fake.plans for row in plan.rows]
    assert rows == [Wants(False, None, 0, PROMPT[1:9]), Wants(True, 3, 0, PROMPT[9:]), Wants(True, 3)]


@pytest.mark.parametrize("overlap", [True, False])
def test_a_conversation_goes_on_from_what_was_decoded(overlap: bool) -> None:
    engine = build_engine(overlap=overlap)
    engine.add(request("turn", PROMPT, max_tokens=20))
    answer = drive(engine)["turn", 0]
    (turn,) = engine.add(request("next turn", [*PROMPT, *answer, 5]))
    drive(engine)
    assert turn.num_cached == 3 * BLOCK, "of 29 tokens that were computed"


def test_a_prompt_is_shared_though_nothing_is_decoded() -> None:
    engine = build_engine()
    engine.add(request("first", [1] * 3 * BLOCK, max_tokens=1))
    drive(engine)
    (second,) = engine.add(request("second", [1] * (3 * BLOCK + 1), max_tokens=1))
    drive(engine)
    assert second.num_cached == 3 * BLOCK


def test_decodes_and_chunks_share_the_tokens_of_a_step() -> None:
    engine = build_engine(max_num_batched_tokens=32)
    for i in range(4):
        engine.add(request(f"decodes {i}", [i], max_tokens=20))
    engine.step()
    engine.add(request("long", [9] * 200, max_tokens=1))
    drive(engine)
    assert max(plan.num_tokens for plan in engine.fake.plans) == 32
    assert any(len(plan.decodes) == 4 and plan.num_tokens == 32 for plan in engine.fake.plans)
