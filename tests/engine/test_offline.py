"""An engine driven by its callers: several at once, more requests than may wait, and outputs that are another's."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from jaxserve.core.errors import EmptyPrompt, InvalidParameter, JaxserveError
from jaxserve.engine.engine import Engine
from jaxserve.engine.offline import run
from jaxserve.engine.outputs import SequenceOutput
from tests.engine.conftest import assert_whole, build_engine, drive, request


def tokens(outputs: Iterator[SequenceOutput]) -> list[int]:
    return [token for output in outputs for token in output.tokens]


def alone(prompt: list[int], **params: int) -> list[int]:
    return tokens(run(build_engine(), [request("x", prompt, **params)]))


@pytest.fixture(params=[True, False], ids=["overlap", "plain"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = build_engine(overlap=request.param, max_waiting=3, max_num_seqs=2)
    yield engine
    assert not engine.has_work
    assert_whole(engine)


def test_more_requests_than_may_wait(engine: Engine) -> None:
    ended = [o.request_id for o in run(engine, [request(str(i), [i]) for i in range(20)]) if o.finish_reason]
    assert sorted(ended, key=int) == [str(i) for i in range(20)]


def test_more_completions_than_may_ever_wait_are_refused_for_good(engine: Engine) -> None:
    with pytest.raises(InvalidParameter, match="max_waiting"):
        list(run(engine, [request("a", [1], n=4)]))


@pytest.mark.parametrize("where", ["plan", "submit", "wait", "commit", "add"])
def test_ctrl_c_is_heeded_between_steps(engine: Engine, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Wherever it comes, the call ends with it, nothing is left, and the next call is served."""
    scheduler, executor = engine.scheduler, engine._executor
    calls = 0

    def interrupted(work: Any) -> Any:
        def run_it(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 3:
                signal.raise_signal(signal.SIGINT)
            return work(*arguments)

        return run_it

    if where == "wait":
        submit = executor.submit

        def submit_one(plan: Any) -> Any:
            pending = submit(plan)
            pending.wait = interrupted(pending.wait)
            return pending

        monkeypatch.setattr(executor, "submit", submit_one)
    else:
        monkeypatch.setattr(executor if where == "submit" else scheduler, where, interrupted(getattr(
            executor if where == "submit" else scheduler, where)))  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        list(run(engine, [request(str(i), [i], max_tokens=8) for i in range(6)]))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not engine.has_work
    assert tokens(run(engine, [request("x", [1, 2])])) == alone([1, 2])


def test_who_steps_by_hand_and_interrupts_a_wait_finds_a_clean_engine(engine: Engine) -> None:
    engine.add(request("a", [1, 2], max_tokens=8))
    submit, fails = engine._executor.submit, iter([False, True])

    def submit_one(plan: Any) -> Any:
        pending = submit(plan)
        if next(fails, False):
            pending.wait = lambda: signal.raise_signal(signal.SIGINT)
        return pending

    engine._executor.submit = submit_one  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        while engine.has_work:
            engine.step()
    (output,) = [o for _ in range(2) for o in engine.step()]
    assert output.finish_reason == "error" and "KeyboardInterrupt" in (output.error or "")
    assert tokens(run(engine, [request("x", [1, 2])])) == alone([1, 2])


def test_one_bad_request_and_nothing_is_queued(engine: Engine) -> None:
    with pytest.raises(EmptyPrompt):
        next(run(engine, [request("good", [1]), request("bad", [])]))


def test_two_streams_read_in_turn(engine: Engine) -> None:
    a, b = run(engine, [request("a", [1, 2])]), run(engine, [request("b", [3] * 9, max_tokens=12)])
    found_a, found_b = [], []
    for _ in range(12):
        found_a += tokens(iter([next(a, SequenceOutput("none", 0))]))
        found_b += tokens(iter([next(b)]))
    assert next(a, None) is None and next(b, None) is None
    assert found_a == alone([1, 2]) and found_b == alone([3] * 9, max_tokens=12)


def test_one_inside_the_loop_of_another(engine: Engine) -> None:
    outer = run(engine, [request("outer", [1, 2])])
    found = next(outer).tokens
    assert tokens(run(engine, [request("inner", [5])])) == alone([5])
    assert found + tokens(outer) == alone([1, 2])


def test_what_was_added_by_hand_is_kept_for_who_steps_by_hand(engine: Engine) -> None:
    engine.add(request("hand", [4], max_tokens=3))
    assert tokens(run(engine, [request("a", [1, 2])])) == alone([1, 2])
    assert engine.has_work
    assert drive(engine) == {("hand", 0): alone([4], max_tokens=3)}


def test_outputs_that_went_to_another_are_an_error_and_no_hang(engine: Engine) -> None:
    stream = run(engine, [request("a", [1, 2])])
    next(stream)
    drive_all = [output for _ in range(30) for output in engine.step()]
    assert drive_all[-1].finish_reason
    with pytest.raises(JaxserveError, match="went to another"):
        next(stream)


def test_leaving_early_frees_everything_and_spares_the_others(engine: Engine) -> None:
    other = run(engine, [request("other", [7])])
    found = next(other).tokens
    stream = run(engine, [request(str(i), [i] * 9, max_tokens=50) for i in range(9)])
    next(stream)
    stream.close()
    assert found + tokens(other) == alone([7])
