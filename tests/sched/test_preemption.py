"""What a preemption is made for, and what it leaves behind."""

import pytest

from jaxserve.cache.block_manager import BlockManager
from jaxserve.cache.tiers import TierLedger
from jaxserve.core.plan import Tier
from jaxserve.core.sampling import SamplingParams
from jaxserve.core.sections import CacheConfig
from jaxserve.core.sequence import FinishReason, Request, Sequence, Status
from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.sched.orderings.fcfs import FirstCome
from jaxserve.sched.roster import Roster
from jaxserve.sched.shares import Shares
from tests.engine.conftest import build_engine, drive, request

SIZE = 8
TENANTS = Tenants([Tenant(name="x", kv_guaranteed=0.5), Tenant(name="y", kv_guaranteed=0.25), Tenant(name="z")])
"""Of 40 blocks x owns 20 and y 10."""


def sequence(tenant: str = "z", priority: int = 0, blocks: int = 0, tokens: int = 20) -> Sequence:
    params = SamplingParams(max_tokens=100)
    made = Sequence(Request(id="r", prompt=tuple(range(tokens)), params=params, tenant=tenant), 0, tokens + 100, 0)
    made.tenant, made.priority, made.blocks = tenant, priority, list(range(blocks))
    return made


def parts(host: int = 0, slots: int = 4, max_preemptions: int = 2) -> tuple[Roster, BlockManager]:
    blocks = BlockManager(CacheConfig(block_size=SIZE, watermark=0.0), 41, tiers=TierLedger(host))
    shares = Shares(TENANTS, fair=False, blocks=40, slots=slots)
    return Roster(FirstCome(None), shares, blocks, slots, max_preemptions), blocks  # type: ignore[arg-type]


@pytest.mark.parametrize(("prompt", "preemptions"), [(24, 1), (56, 0)], ids=["enough together", "too few"])
def test_nothing_is_preempted_for_a_waiting_sequence_that_would_still_lack_blocks(
    prompt: int, preemptions: int
) -> None:
    """Of ten blocks a sequence of its own class holds seven and one of a lower class two."""
    engine = build_engine(blocks=10, ordering="priority", watermark=0.0, prefix=False, max_num_batched_tokens=64)
    for name, size, priority in (("own class", 50, 0), ("lower class", 10, 1)):
        (last,) = engine.add(request(name, [1] * size, priority=priority, max_tokens=5))
    engine.step()
    assert [len(s.blocks) for s in engine.scheduler.running] == [7, 2]
    engine.add(request("waiting", [1] * prompt, priority=0))
    drive(engine)
    assert last.preemptions == preemptions


def fair_engine(lead: float):
    """Four slots, all of which b has; both wait. `lead`: how much further a's counter is than b's."""
    tenants = Tenants([Tenant(name="a"), Tenant(name="b")])
    engine = build_engine(
        blocks=60, ordering="fair", tenants=tenants, max_num_seqs=4, prefix=False, max_num_batched_tokens=64,
    )  # fmt: skip
    for i in range(5):
        engine.add(request(f"b{i}", [1] * 10, tenant="b", max_tokens=40))
    engine.step()
    engine.add(request("a", [1] * 10, tenant="a", max_tokens=5))
    ordering = engine.scheduler._ordering
    ordering.counters = {"a": ordering.counters["b"] + lead, "b": ordering.counters["b"]}
    engine.step()
    return engine


@pytest.mark.parametrize(("lead", "runs"), [(0.5, True), (60.0, True), (70.0, False)])
def test_a_tenant_takes_its_slots_back_when_its_turn_is_near(lead: float, runs: bool) -> None:
    """b is first and may take nothing back. A step has 64 tokens."""
    engine = fair_engine(lead)
    held = [s.tenant for s in engine.scheduler.running]
    assert held.count("a") == runs and held.count("b") == 4 - runs


def running(roster: Roster, blocks: BlockManager, tenant: str = "z") -> Sequence:
    """All of them have the same prompt of two blocks and a half."""
    made = sequence(tenant)
    roster.waiting.push(made)
    assert roster.admit(made, len(made.tokens), 1.5)
    made.num_computed = len(made.tokens)
    blocks.note_computed(made)
    return made


@pytest.mark.parametrize("tier", [None, Tier.HOST])
def test_a_preempted_sequence_keeps_nothing_and_comes_back(tier: Tier | None) -> None:
    roster, blocks = parts(host=10)
    first, second = running(roster, blocks), running(roster, blocks, "x")
    assert (first.slot, second.slot) == (0, 1) and first.first_scheduled_s == 1.5
    first.decoding = True
    roster.preempt(first, tier)
    assert first.status is Status.WAITING and first.slot == -1 and not first.decoding and not first.blocks
    assert (first.num_computed, first.preemptions) == (0, 1)
    assert list(roster.running) == [second] and roster.waiting.first() is first
    assert roster.admit(first, 4, 2.5)
    assert first.slot == 0 and first.first_scheduled_s == 1.5, "when it was first"
    assert first.num_computed == (20 if tier else 16), "what was parked, or the cached prefix"
    assert first.num_cached == (0 if tier else 16)
    assert len(first.blocks) == 3 and blocks.pool.num_free == 40 - 4, "two of them are shared"
    assert (blocks.prefix_queries, blocks.prefix_hits) == ((40, 16) if tier else (60, 32)), "none for what was parked"


def test_after_the_last_preemption_it_is_admitted_with_all_its_blocks() -> None:
    roster, blocks = parts(max_preemptions=1)
    found = running(roster, blocks)
    assert roster.preemptible(found) and len(found.blocks) == 3
    roster.preempt(found, None)
    assert not roster.preemptible(found) and roster.shortage(found, 4) == -25
    assert roster.admit(found, 4, 0.0) and len(found.blocks) == 15, "120 tokens"


def test_blocks_that_hold_nothing_are_not_parked() -> None:
    roster, blocks = parts(host=10)
    made = sequence()
    roster.waiting.push(made)
    assert roster.admit(made, 20, 0.0) and len(made.blocks) == 3
    made.num_computed = 9
    roster.preempt(made, Tier.HOST)
    assert blocks.tiers.used(Tier.HOST) == 2 and blocks.pool.num_free == 40


@pytest.mark.parametrize("parked", [False, True])
def test_a_finished_sequence_holds_nothing(parked: bool) -> None:
    roster, blocks = parts(host=10)
    found = running(roster, blocks)
    if parked:
        roster.preempt(found, Tier.HOST)
    roster.finish(found, FinishReason.ABORT, 9.0)
    assert found.status is Status.FINISHED and found.finish_reason is FinishReason.ABORT and found.finished_s == 9.0
    assert not roster.running and not roster.waiting and found.slot == -1
    assert blocks.pool.num_free == 40 and blocks.tiers.used(Tier.HOST) == 0
    assert running(roster, blocks).slot == 0
