"""Refusals, aborts, failures of a step: each harms nobody else."""

import pytest

from jaxserve.core.errors import (
    DuplicateRequest,
    EmptyPrompt,
    InvalidParameter,
    PromptTooLong,
    QueueFull,
    RequestTooLarge,
    TokenOutOfRange,
    TooManyBanned,
)
from jaxserve.core.sequence import FinishReason, Sequence
from jaxserve.engine.engine import Engine
from tests.engine.conftest import assert_whole, build_engine, drive, request


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (request("x", []), EmptyPrompt),
        (request("x", [1, 97]), TokenOutOfRange),
        (request("x", [-1]), TokenOutOfRange),
        (request("x", [True]), TokenOutOfRange),
        (request("x", [1] * 100), PromptTooLong),
        (request("x", [1] * 90, max_tokens=11), RequestTooLarge),
        (request("x", [1], stop_token_ids=(97,)), TokenOutOfRange),
        (request("x", [1], logit_bias={500: 1.0}), TokenOutOfRange),
        (request("x", [1], stop=("a",)), InvalidParameter),
        (request("good", [1]), DuplicateRequest),
    ],
)
def test_a_refusal_leaves_the_others_alone(bad, error) -> None:
    engine = build_engine(max_model_len=100)
    engine.add(request("good", [1, 2, 3]))
    engine.step()
    with pytest.raises(error):
        engine.add(bad)
    assert len(drive(engine)["good", 0]) == 8


def test_min_tokens_holds_back_every_end_or_says_how_many_it_can() -> None:
    """64 stop tokens and 9 ends of the model are one more than a slot holds."""
    engine = build_engine()
    ends = {"stop_token_ids": tuple(range(1, 65)), "eos": tuple(range(65, 74)), "max_tokens": 6}
    with pytest.raises(TooManyBanned, match="at most 72 tokens, and 73 would end this request: give fewer stop_token"):
        engine.add(request("too many", [1], min_tokens=1, **ends))
    engine.add(request("none held back", [1], **ends))
    engine.add(request("not the model's", [1], min_tokens=1, ignore_eos=True, **ends))
    engine.add(request("as many as can be", [1], min_tokens=1, **ends | {"eos": tuple(range(60, 73))}))
    assert {name for name, _ in drive(engine)} == {"none held back", "not the model's", "as many as can be"}


def test_the_queue_is_bounded_for_whole_requests() -> None:
    engine = build_engine(max_waiting=4)
    engine.add(request("a", [1], n=3))
    with pytest.raises(QueueFull):
        engine.add(request("b", [1], n=2))
    engine.add(request("c", [1]))
    assert {name for name, _ in drive(engine)} == {"a", "c"}


def test_the_queue_is_bounded_in_tokens() -> None:
    """What waits counts, not what runs; into an empty queue a request may always come."""
    engine = build_engine(max_waiting_tokens=50, max_num_seqs=1)
    engine.add(request("runs", [1] * 60))
    engine.step()
    engine.add(request("long", [1] * 60))
    with pytest.raises(QueueFull, match=r"60 tokens wait and the bound is 50 \(max_waiting_tokens\)"):
        engine.add(request("refused", [1]))
    assert engine.abort("long")
    engine.add(request("a", [1] * 20, n=2))
    with pytest.raises(QueueFull, match="40 tokens wait"):
        engine.add(request("b", [1] * 11))
    engine.add(request("c", [1] * 10))
    assert {name for name, _ in drive(engine)} == {"runs", "long", "a", "c"}
    assert engine.scheduler._roster.waiting.tokens == 0


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_an_abort_frees_every_block_at_once(overlap: bool, steps: int) -> None:
    engine = build_engine(overlap=overlap)
    engine.add(request("gone", list(range(60)), max_tokens=50, n=2))
    for _ in range(steps):
        engine.step()
    assert engine.abort("gone")
    pool = engine.scheduler.blocks.pool
    assert pool.num_free == pool.capacity
    reasons = [output.finish_reason for output in engine.step()]
    assert reasons == ["abort", "abort"]
    drive(engine)
    assert not engine.abort("gone")


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("where", ["fail_submit", "fail_sample", "fail_wait"])
def test_a_failed_step_ends_what_ran_and_serves_the_rest(overlap: bool, where: str) -> None:
    engine = build_engine(overlap=overlap, max_num_seqs=2)
    for i in range(5):
        engine.add(request(str(i), [7] * 10))  # what is cached of the first is lost with the step
    getattr(engine.fake, where).add(3)
    reasons: dict[str, str] = {}
    errors: dict[str, str | None] = {}
    while engine.has_work:
        for output in engine.step():
            if output.finish_reason:
                reasons[output.request_id], errors[output.request_id] = output.finish_reason, output.error
    assert reasons == {"0": "error", "1": "error", "2": "length", "3": "length", "4": "length"}
    assert "RuntimeError" in (errors["0"] or "")
    assert engine.fake.resets == 1
    assert_whole(engine)


def test_a_sequence_that_a_failed_step_preempted_ends_with_it() -> None:
    """Its row in the step before is lost too: waiting for that token it would never be admitted."""

    def crowded(failed: set[int]) -> tuple[Engine, list[Sequence]]:
        engine = build_engine(blocks=8, max_model_len=64, watermark=0.0)
        engine.fake.fail_submit = failed
        sequences = [s for i in range(6) for s in engine.add(request(str(i), [i] * 10, max_tokens=30))]
        drive(engine)
        return engine, sequences

    calm, _ = crowded(set())
    step = next(plan.step for plan in calm.fake.plans if plan.preempted)
    _, sequences = crowded({step})
    preempted = [s for s in sequences if s.finish_reason == "error" and s.preemptions]
    assert preempted and all(s.num_pending == 1 for s in preempted), "a row that will not come back"
    assert sequences[-1].finish_reason == "length"


def test_a_request_is_live_until_its_last_completion_has_ended() -> None:
    engine = build_engine()
    first, second = engine.add(request("r", [1], n=2))
    engine.scheduler.finish(first, FinishReason.ABORT, 0.0)
    engine.step()
    with pytest.raises(DuplicateRequest):
        engine.add(request("r", [1]))
    assert engine.abort("r") and second.finished
    drive(engine)
    engine.add(request("r", [1]))
    drive(engine)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("tiers", [(0, 0, 0), (20, 0, 0), (0, 20, 20)])
@pytest.mark.parametrize("outputs", [0, 1, 5])
def test_logits_that_are_not_finite_end_their_sequence_alone(
    overlap: bool, tiers: tuple[int, int, int], outputs: int
) -> None:
    """In a pool that is too small for all; what it computed is not found by the same prompt."""
    prompts = {name: [ord(name) - 90, *range(20 + i)] for i, name in enumerate("abcdefg")}
    runs = []
    for bad in (False, True):
        engine = build_engine(overlap=overlap, tiers=tiers, blocks=14, watermark=0.0)
        if bad:
            engine.fake.not_finite["d", 0] = outputs
        for name, prompt in prompts.items():
            engine.add(request(name, prompt, max_tokens=12))
        found = drive_outputs(engine)
        runs.append({name: output for name, output in found.items() if name != "d"})
        assert engine.fake.preemptions
        if bad:
            assert found["d"][1] == FinishReason.ERROR and "NonFiniteLogits" in (found["d"][2] or "")
            assert len(found["d"][0]) == outputs
            (again,) = engine.add(request("again", prompts["d"]))
            drive(engine)
            assert again.num_cached == 0
    assert runs[0] == runs[1]


def drive_outputs(engine: Engine) -> dict[str, tuple[list[int], FinishReason | None, str | None]]:
    found: dict[str, tuple[list[int], FinishReason | None, str | None]] = {}
    while engine.has_work:
        for output in engine.step():
            tokens = found.get(output.request_id, ([], None, None))[0]
            found[output.request_id] = [*tokens, *output.tokens], output.finish_reason, output.error
    assert_whole(engine)
    return found
