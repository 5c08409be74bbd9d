"""Why did it do that: one reason for each in every step, and parts that add up to the time that passed."""

import json
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.core.clock import VirtualClock
from jaxserve.core.config import EngineConfig
from jaxserve.core.decisions import DECODE, ENDED, PREFILL, Change, Chunk, Decision, Part, Reason
from jaxserve.core.errors import ConfigError
from jaxserve.core.plan import Bucket, StepPlan
from jaxserve.core.sequence import Sequence
from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.costs.model import FormulaCost
from jaxserve.engine.engine import Engine
from jaxserve.metrics.decision_record import from_json, to_json
from jaxserve.metrics.timeline import POOL, REQUESTS, STEPS, chrome_trace
from jaxserve.sched.journal import Journal
from jaxserve.sched.policies import POLICIES
from jaxserve.sched.victims import WAIT
from jaxserve.sim.arrivals import Arrival
from jaxserve.sim.build import simulated_engine
from jaxserve.sim.drive import drive
from tests.engine.conftest import assert_whole, build_engine, request

MS = 1e-3


class Ticking(VirtualClock):
    """Time passes whenever somebody looks."""

    def __init__(self, seed: int) -> None:
        super().__init__(5.0)
        self._rng = random.Random(seed)

    def now(self) -> float:
        self.advance(self._rng.random() * 0.01)
        return super().now()


def check_reasons(engine: Engine) -> None:
    """After every plan everybody who waits has one reason, and the counts are theirs."""
    scheduler = engine.scheduler
    plan = scheduler.plan

    def checked(now: float) -> StepPlan | None:
        step = plan(now)
        found: Counter[Reason] = Counter()
        rows = set(scheduler.in_flight[-1].sequences) if step else set()
        for sequence in scheduler.live():
            reason = scheduler.journal.reason(sequence)
            assert reason is None or sequence not in rows, f"{sequence.id} has a row, and is said to wait"
            if sequence.slot < 0:
                assert isinstance(reason, Reason), f"{sequence.id} waits for no reason"
                found[reason] += 1
        assert found == scheduler.journal.waiting()
        return step

    scheduler.plan = checked


def run(engine: Engine, arrivals: dict[int, list[dict]]) -> list[Sequence]:
    """Requests arrive a little before they reach the engine."""
    sequences: list[Sequence] = []
    check_reasons(engine)
    for step in range(4000):
        for options in arrivals.get(step, []):
            arrived = engine._clock.now()
            sequences += engine.add(request(f"r{len(sequences)}", **options, arrival_s=arrived))
        engine.step()
        if not engine.has_work and step > max(arrivals):
            return sequences
    raise AssertionError("the engine does not come to an end")


@settings(max_examples=60, deadline=None)
@given(
    arrivals=st.lists(st.tuples(st.integers(0, 25), st.integers(1, 40), st.integers(1, 24)), min_size=3, max_size=12),
    policy=st.sampled_from(sorted(POLICIES)),
    blocks=st.integers(8, 20),
    tiers=st.sampled_from([(0, 0, 0), (20, 0, 0), (0, 20, 8)]),
    delay=st.integers(0, 4),
    overlap=st.booleans(),
    chunk_size=st.sampled_from([None, 5]),
    seed=st.integers(0, 99),
)
def test_the_parts_add_up(arrivals, policy, blocks, tiers, delay, overlap, chunk_size, seed) -> None:
    engine = build_engine(
        blocks=blocks, tiers=tiers, overlap=overlap, policy=policy, chunk_size=chunk_size, max_num_seqs=4,
        max_model_len=64, watermark=0.0, batch_size=2, max_batch_size=2, clock=Ticking(seed),
    )  # fmt: skip
    engine.fake.tiers.delay = delay
    by_step: dict[int, list[dict]] = {}
    for at, length, tokens in arrivals:
        by_step.setdefault(at, []).append({"prompt": [at] * length, "max_tokens": tokens})
    sequences = run(engine, by_step)
    assert_whole(engine)
    for sequence in sequences:
        account = engine.scheduler.journal.account(sequence.id, 0.0)
        assert account is not None and account.first_token is not None and account.ended == "length"
        arrival_s = sequence.request.arrival_s
        assert sum(account.first_token.values()) == pytest.approx(sequence.first_token_s - arrival_s, abs=MS)
        assert sum(account.seconds.values()) == pytest.approx(sequence.finished_s - arrival_s, abs=MS)
        assert account.first_token["prefill"] > 0.0 and "decode" not in account.first_token
        assert len(account.preemptions) == sequence.preemptions
        assert ("preempted" in " ".join(account.seconds)) == bool(sequence.preemptions)
    changes = [change for decision in engine.scheduler.journal.decisions() for change in decision.changes]
    assert all(change.at_s >= 0.0 for change in changes)


def reasons_of(engine: Engine, name: str) -> dict[str, float]:
    account = engine.scheduler.journal.account(name, engine._clock.now())
    assert account is not None
    return account.seconds


def steps(engine: Engine, count: int) -> None:
    for _ in range(count):
        engine.step()
        engine._clock.advance(0.01)


def test_blocks_and_order() -> None:
    engine = build_engine(blocks=8, max_num_seqs=4, max_model_len=64, watermark=0.2)
    for name in "abc":
        engine.add(request(name, [ord(name) % 97] * 50, max_tokens=10))
    steps(engine, 4)
    assert engine.scheduler.journal.waiting() == {Reason.BLOCKS: 1, Reason.ORDER: 1}
    assert reasons_of(engine, "b")["queued:blocks"] > 0 and reasons_of(engine, "c")["queued:order"] > 0


def test_budget() -> None:
    engine = build_engine(max_num_seqs=1)
    engine.add(request("a", [1] * 30, max_tokens=20))
    engine.add(request("b", [2] * 30))
    steps(engine, 4)
    assert set(reasons_of(engine, "b")) == {"queued:budget"}, "one slot, and it is taken"


def test_gate() -> None:
    engine = build_engine(policy="static", batch_size=2)
    for name in "abc":
        engine.add(request(name, [1] * 10, max_tokens=20))
    steps(engine, 6)
    assert engine.scheduler.journal.waiting() == {Reason.GATE: 1}
    assert reasons_of(engine, "c")["queued:gate"] >= 0.03


def test_share() -> None:
    tenants = Tenants([Tenant(name="default"), Tenant(name="small", kv_max=0.3)])
    engine = build_engine(blocks=32, tenants=tenants)
    for name in "ab":
        engine.add(request(name, [1] * 40, max_tokens=20, tenant="small"))
    engine.add(request("c", [1] * 40, max_tokens=20))
    steps(engine, 5)
    assert reasons_of(engine, "b")["queued:share"] > 0.0
    assert "queued:share" not in reasons_of(engine, "c") and reasons_of(engine, "c")["prefill"] > 0.0


def preempting_engine(**options) -> Engine:
    engine = build_engine(blocks=9, max_model_len=64, watermark=0.0, prefix=False, clock=VirtualClock(2.0), **options)
    for i in range(8):
        engine.add(request(f"r{i}", [i] * (5 + 2 * i), max_tokens=30, arrival_s=1.99))
    while engine.has_work:
        steps(engine, 1)
    return engine


def test_the_record_says_who_gave_way_and_what_it_would_have_cost() -> None:
    engine = preempting_engine(tiers=(40, 0, 0))
    displaced = [d for decision in engine.scheduler.journal.decisions() for d in decision.displaced]
    assert displaced and all(d.fate == "host" for d in displaced)
    account = engine.scheduler.journal.account(displaced[0].sequence, 0.0)
    assert account is not None and displaced[0] in account.preemptions
    assert any(name.startswith("preempted:") for name in account.seconds)


def waiting_engine() -> Engine:
    """Blocks run short again and again, now and then with somebody about to end."""
    cost = FormulaCost(
        source="test", overhead_s=0.001, weights_s=0.0, token_s=1e-4, pair_s=0.0, context_s=0.0, row_s=0.0
    )
    rng, clock = random.Random(3), VirtualClock()
    settings = EngineConfig.from_settings(
        num_blocks=24,
        block_size=8,
        max_num_seqs=8,
        max_num_batched_tokens=64,
        enable_prefix_caching=False,
        watermark=0.0,
    )  # fmt: skip
    engine = simulated_engine(settings, cost, clock)
    arrivals = [Arrival(0.002 * i, rng.randint(10, 60), rng.randint(4, 40)) for i in range(60)]
    assert len(list(drive(engine, clock, arrivals))) == 60
    return engine


def test_the_record_says_what_waited_because_that_was_cheaper_than_a_preemption() -> None:
    decisions = waiting_engine().scheduler.journal.decisions()
    waited = [(d, w) for d in decisions for w in d.waited]
    assert waited
    for decision, entry in waited:
        assert decision.held.get(entry.claimant) is Reason.BLOCKS, "and it has no row"
        fates = {name: price for name, price in entry.prices.items() if name != WAIT}
        assert fates and entry.prices[WAIT] < min(fates.values())
    assert any(WAIT in d.prices for decision in decisions for d in decision.displaced), (
        "it is priced when not taken too"
    )
    assert from_json(json.loads(json.dumps(to_json(decisions)))) == decisions
    events = chrome_trace(decisions)["traceEvents"]
    assert sum(e["name"] == "waits for an end" and e["args"]["prices_s"][WAIT] > 0 for e in events) == len(waited)


def test_the_ring_and_the_past_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxserve.sched.journal.KEPT_ACCOUNTS", 3)
    engine = preempting_engine(journal_steps=10)
    journal: Journal = engine.scheduler.journal
    assert len(journal.decisions()) == 10
    assert sum(journal.account(f"r{i}", 0.0) is not None for i in range(8)) == 3
    assert not journal._live and not journal._held and not journal.filling and not journal._in_flight


def test_a_record_comes_back_whole() -> None:
    decisions = preempting_engine(tiers=(40, 0, 0)).scheduler.journal.decisions()
    assert from_json(json.loads(json.dumps(to_json(decisions)))) == decisions
    for damaged in ({}, [1], [{"step": 1}], "x"):
        if damaged:
            with pytest.raises(ConfigError, match="/debug/decisions"):
                from_json(damaged)


def assert_nested(slices: list[dict[str, Any]]) -> None:
    """Slices of a track nest or follow each other: Perfetto draws nothing else."""
    stack: list[float] = []
    for e in sorted(slices, key=lambda e: (e["ts"], -e["dur"])):
        while stack and stack[-1] <= e["ts"] + 1e-2:
            stack.pop()
        assert not stack or e["ts"] + e["dur"] <= stack[-1] + 1e-2
        stack.append(e["ts"] + e["dur"])


def test_a_chunk_whose_sequence_has_no_row_in_the_step_planned_meanwhile() -> None:
    facts: dict[str, Any] = {"admitted": (), "moves": {}, "blocks_held": 1, "blocks_cached": 0, "blocks": 9,
                             "host_blocks": 0, "disk_blocks": 0}  # fmt: skip
    first = Decision(1, 0.0, Bucket(0, 64, 1, 0), 0, (Chunk("a", 0, 64),), ended_s=1.0, **facts)
    first.changes = [Change(0.0, "a", PREFILL), Change(0.4, "a", Part("running", Reason.BUDGET))]
    second = Decision(2, 0.4, Bucket(8, 0, 0, 0), 3, (), ended_s=1.1, **facts)
    second.changes = [Change(1.1, "a", DECODE), Change(1.5, "a", ENDED)]
    drawn = [e for e in chrome_trace([first, second])["traceEvents"] if e["ph"] == "X" and e["pid"] == REQUESTS]
    assert_nested(drawn)
    chunks = [(e["ts"], e["dur"]) for e in drawn if e["name"] == "chunk 0..63"]
    assert chunks == [(0.0, 400_000.0), (400_000.0, 600_000.0)]


def test_the_trace_has_a_track_a_request_one_of_steps_and_one_of_the_pool() -> None:
    engine = preempting_engine(tiers=(40, 0, 0))
    decisions = engine.scheduler.journal.decisions()
    events = json.loads(json.dumps(chrome_trace(decisions)))["traceEvents"]
    tracks = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert sorted(tracks.values()) == [f"r{i}" for i in range(8)]
    slices = [e for e in events if e["ph"] == "X"]
    assert all(e["ts"] >= 0 and e["dur"] >= 0 for e in slices)
    assert sum(e["pid"] == STEPS for e in slices) == len(decisions)
    names = {e["name"].split(" ")[0] for e in slices if e["pid"] == REQUESTS}
    assert names == {"intake", "queued", "prefill", "decode", "swapped", "chunk"} | (names & {"running"})
    assert {e["name"] for e in events if e["pid"] == POOL and e["ph"] == "C"} == {
        "KV blocks", "offloaded blocks", "waiting",
    }  # fmt: skip
    for track in tracks:
        assert_nested([e for e in slices if e["pid"] == REQUESTS and e["tid"] == track])
    starts = [e["ts"] for e in slices if e["pid"] == STEPS]
    assert starts == sorted(starts)
    ends = [c for d in decisions for c in d.changes if c.part == ENDED]
    assert len(ends) == 8
    assert chrome_trace([])["traceEvents"]
