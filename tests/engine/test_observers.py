"""Observers see every step and every event once, whatever ended the sequence."""

import pytest

from jaxserve.core.clock import VirtualClock
from jaxserve.core.errors import InvalidRequest, QueueFull
from jaxserve.core.events import Finished, Preempted, Refused, TokenSampled
from jaxserve.core.plan import Tier
from jaxserve.core.sequence import FinishReason
from jaxserve.core.step_record import StepRecord
from tests.engine.conftest import build_engine, drive, request


class Notebook:
    def __init__(self) -> None:
        self.records: list[StepRecord] = []

    def observe(self, record: StepRecord) -> None:
        self.records.append(record)

    def events(self, kind: type) -> list:
        return [event for record in self.records for event in record.events if type(event) is kind]


@pytest.mark.parametrize("overlap", [True, False])
def test_every_token_and_every_step_once(overlap: bool) -> None:
    engine = build_engine(blocks=10, overlap=overlap)
    notebook = Notebook()
    engine.observers.append(notebook)
    for i in range(8):
        engine.add(request(f"r{i}", list(range(5 + i)), max_tokens=20))
    tokens = drive(engine)
    assert len(notebook.events(TokenSampled)) == sum(map(len, tokens.values())) == 160
    steps = [record.plan.step for record in notebook.records if record.plan]
    assert steps == list(range(1, len(steps) + 1))
    assert len(notebook.events(Preempted)) == sum(
        len(record.plan.preempted) for record in notebook.records if record.plan
    )
    assert notebook.events(Preempted)


def test_where_a_preempted_sequence_went() -> None:
    engine = build_engine(blocks=10, tiers=(64, 0, 0))
    notebook = Notebook()
    engine.observers.append(notebook)
    for i in range(8):
        engine.add(request(f"r{i}", list(range(5 + i)), max_tokens=20))
    drive(engine)
    assert {event.tier for event in notebook.events(Preempted)} <= {None, Tier.HOST}
    assert any(record.plan.moves for record in notebook.records if record.plan) == any(
        event.tier for event in notebook.events(Preempted)
    )


def test_aborts_failures_and_refusals() -> None:
    engine = build_engine(max_waiting=2)
    notebook = Notebook()
    engine.observers.append(notebook)
    engine.add(request("a", [1, 2]))
    engine.add(request("b", [1, 2]))
    with pytest.raises(QueueFull):
        engine.add(request("c", [1, 2]))
    with pytest.raises(InvalidRequest):
        engine.add(request("d", []))
    assert [event.reason for event in notebook.events(Refused)] == ["queue_full", "invalid"]
    engine.abort("b")
    engine.step()
    engine.fake.fail_wait.add(1)
    drive(engine)
    assert {(e.sequence.id, e.reason) for e in notebook.events(Finished)} == {
        ("b", FinishReason.ABORT),
        ("a", FinishReason.ERROR),
    }


def test_when_a_step_was_planned_and_ended() -> None:
    clock = VirtualClock(10.0)
    engine = build_engine(clock=clock, overlap=False)
    notebook = Notebook()
    engine.observers.append(notebook)
    engine.add(request("a", [1, 2], max_tokens=2))
    submit = engine.fake.submit

    def slow(plan):
        clock.advance(0.25)
        return submit(plan)

    engine.fake.submit = slow
    drive(engine)
    first = notebook.records[0]
    assert (first.step.planned_s, first.now, first.seconds) == (10.0, 10.25, 0.25)
