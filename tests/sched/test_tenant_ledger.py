"""Shares, rates, queues and early refusals: what a tenant may do to the others."""

import random

import pytest

from jaxserve.core.clock import VirtualClock
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import InvalidParameter, PromptTooLong, QueueFull, RequestTooLarge, TooBusy
from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.costs.model import FormulaCost
from jaxserve.engine.engine import Engine
from jaxserve.sched.output_lengths import OutputLengths
from jaxserve.sim.arrivals import Arrival
from jaxserve.sim.build import simulated_engine
from jaxserve.sim.drive import drive
from tests.engine.conftest import request

COST = FormulaCost(
    source="made up", overhead_s=0.01, weights_s=0.0, token_s=0.001, pair_s=0.0, context_s=0.0, row_s=0.0
)


def engine_of(tenants: list[Tenant], clock: VirtualClock | None = None, **changes) -> Engine:
    options = {
        "num_blocks": 100, "block_size": 8, "enable_prefix_caching": False, "overlap": False, "max_num_seqs": 16,
        "max_num_batched_tokens": 128,
    }  # fmt: skip
    config = EngineConfig.from_settings(**(options | changes))
    return simulated_engine(config, COST, clock or VirtualClock(), Tenants(tenants))


def held(engine: Engine, tenant: str) -> int:
    return sum(len(s.blocks) for s in engine.scheduler.running if s.tenant == tenant)


def listed(seed: int = 0, count: int = 60) -> list[Arrival]:
    rng = random.Random(seed)
    return [
        Arrival(0.02 * i, rng.randint(1, 100), rng.randint(1, 60), rng.choice(["chat", "batch"])) for i in range(count)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_a_cap_holds_in_every_step_and_everybody_is_served(seed: int) -> None:
    engine = engine_of([Tenant(name="batch", kv_max=0.4), Tenant(name="chat")])
    widest = 0
    for i, a in enumerate(listed(seed)):
        engine.add(request(str(i), [0] * a.prompt_tokens, tenant=a.tenant, max_tokens=a.output_tokens))
    ended = 0
    while engine.has_work:
        ended += sum(output.finish_reason is not None for output in engine.step())
        widest = max(widest, held(engine, "batch"))
    assert 20 < widest <= 40 and ended == 60


def test_an_idle_share_is_lent_and_taken_back() -> None:
    tenants = [Tenant(name="chat", kv_guaranteed=0.5), Tenant(name="batch")]
    engine = engine_of(tenants, ordering="fair", max_preemptions=10, watermark=0.0)
    for i in range(8):
        engine.add(request(f"b{i}", [0] * 60, tenant="batch", max_tokens=60))
    for _ in range(30):
        engine.step()
    assert held(engine, "batch") > 80, "nobody else is there: all of it may be used"
    for i in range(3):
        engine.add(request(f"c{i}", [0] * 100, tenant="chat", max_tokens=20))
    for _ in range(8):
        engine.step()
    assert held(engine, "chat") >= 39, "its own, at once"
    preempted = {s.tenant for s in engine.scheduler.live() if s.preemptions}
    assert preempted == {"batch"}
    while engine.has_work:
        engine.step()


def test_a_sequence_inside_its_guarantee_is_not_preempted() -> None:
    tenants = [Tenant(name="low", priority=5, kv_guaranteed=0.5), Tenant(name="high", priority=0)]
    engine = engine_of(tenants, ordering="priority", max_preemptions=10)
    low = engine.add(request("l", [0] * 200, tenant="low", max_tokens=100))[0]
    for _ in range(4):
        engine.step()
    for i in range(10):
        engine.add(request(f"h{i}", [0] * 100, tenant="high", max_tokens=60))
    while engine.has_work:
        engine.step()
    assert low.preemptions == 0


def test_a_sequence_is_preempted_max_preemptions_times_at_most() -> None:
    tenants = [Tenant(name="low", priority=5), Tenant(name="high", priority=0)]
    engine = engine_of(tenants, ordering="priority", max_preemptions=1, num_blocks=40)
    low = engine.add(request("l", [0] * 100, tenant="low", max_tokens=150))[0]
    for wave in range(6):
        for _ in range(20):
            engine.step()
        engine.add(request(f"h{wave}", [0] * 200, tenant="high", max_tokens=10))
    while engine.has_work:
        engine.step()
    assert low.preemptions == 1


def test_a_request_over_its_tenants_share_is_refused_for_good() -> None:
    engine = engine_of([Tenant(name="small", kv_max=0.1)])
    with pytest.raises(PromptTooLong, match="kv_max of tenant 'small'"):
        engine.add(request("a", [0] * 100, tenant="small"))
    with pytest.raises(RequestTooLarge, match="kv_max of tenant 'small'"):
        engine.add(request("b", [0] * 40, tenant="small", max_tokens=60))
    assert engine.add(request("c", [0] * 40, tenant="small", max_tokens=None))[0].max_len == 80
    engine.add(request("d", [0] * 100, tenant="other"))


def test_queues_are_bounded_by_tenant() -> None:
    engine = engine_of([Tenant(name="t", max_waiting=2)])
    for name in "ab":
        engine.add(request(name, [1], tenant="t"))
    with pytest.raises(QueueFull, match="max_waiting of tenant 't'") as caught:
        engine.add(request("c", [1], tenant="t"))
    assert caught.value.reason == "tenant_limit" and caught.value.retry_after_s > 0
    with pytest.raises(InvalidParameter, match=r"at most max_waiting of tenant 't' \(2\)"):
        engine.add(request("e", [1], tenant="t", n=3))
    engine.add(request("d", [1], tenant="other"))


def test_a_refusal_changes_nothing() -> None:
    engine = engine_of([Tenant(name="t", max_waiting=1)])
    engine.add(request("a", [1] * 5, tenant="t", max_tokens=3))
    with pytest.raises(QueueFull):
        engine.add(request("b", [1] * 5, tenant="t"))
    while engine.has_work:
        engine.step()
    assert engine.scheduler.num_waiting == 0 and engine.scheduler._ledger.active == frozenset()


def test_output_lengths_are_the_tenants_own() -> None:
    lengths = OutputLengths()
    assert lengths.quantile("t", 0.9, 500) == 500, "nothing is known: the most there can be"
    for i in range(400):
        lengths.note("t", i % 100)
    assert 85 <= lengths.quantile("t", 0.9, 500) <= 95 and lengths.quantile("t", 0.9, 50) == 50
    assert lengths.quantile("other", 0.9, 500) == 500


def overload(seed: int, rate: float, count: int = 400) -> list[Arrival]:
    rng = random.Random(seed)
    at, found = 0.0, []
    for _ in range(count):
        at += rng.expovariate(rate)
        found.append(Arrival(at, rng.randint(1, 200), rng.randint(1, 30)))
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_refusing_early_keeps_the_promise_to_the_others(seed: int) -> None:
    """Offered is about twice what can be served: without admission nearly all are late, with it few of the admitted."""
    runs = {}
    for admission in ("queue", "slo"):
        clock = VirtualClock()
        engine = engine_of([], clock, admission=admission, ttft_slo_s=1.0, num_blocks=2000)
        runs[admission] = list(drive(engine, clock, overload(seed, 16.0)))
    met = {name: sum(bool(s.token_s) and s.ttft_s <= 1.0 for s in run) for name, run in runs.items()}
    admitted = [s for s in runs["slo"] if s.token_s]
    assert met["slo"] > 2.0 * met["queue"]
    assert met["slo"] >= 0.95 * len(admitted)
    assert {s.refused for s in runs["slo"]} == {"", "slo"}


def test_a_refusal_names_when_to_come_back() -> None:
    clock = VirtualClock()
    engine = engine_of([], clock, admission="slo", ttft_slo_s=0.5, num_blocks=2000)
    with pytest.raises(TooBusy, match=r"objective is 0\.5 s") as caught:
        for i in range(50):
            engine.add(request(str(i), [0] * 200))
    assert caught.value.reason == "slo" and 0.0 < caught.value.retry_after_s < 5.0


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_nine_forecasts_of_ten_hold(seed: int) -> None:
    clock = VirtualClock()
    engine = engine_of([], clock, ttft_slo_s=5.0, num_blocks=2000)
    run = list(drive(engine, clock, overload(seed, 7.0, 1500)))
    known = [s for s in run if s.predicted_p90_s and s.number > 100]
    covered = sum(s.ttft_s <= s.predicted_p90_s for s in known) / len(known)
    assert 0.85 <= covered <= 0.95
    assert sum(abs(s.predicted_ttft_s - s.ttft_s) / s.ttft_s for s in known) / len(known) < 0.3


# --- what a body may ask for ----------------------------------------------------------------------------------


def finishing_order(ordering: str, tenants: list[Tenant], **asked) -> list[str]:
    """The requests of `chat`, among 200 of `batch` that ask for `asked`, and those, in the order in which they end."""
    engine = engine_of(tenants, ordering=ordering, num_blocks=400, max_num_seqs=8)
    for i in range(200):
        engine.add(request(f"b{i}", [0] * 20, tenant="batch", max_tokens=20, **asked))
    for i in range(8):
        engine.add(request(f"c{i}", [0] * 20, tenant="chat", max_tokens=5))
    ended = []
    while engine.has_work:
        ended += [output.request_id for output in engine.step() if output.finish_reason is not None]
    return ended


EXTREMES = [{"priority": -(2**31)}, {"priority": 0}, {"ttft_slo_s": 1e-9}, {"tpot_slo_s": 1e-9}]


@pytest.mark.parametrize("ordering", ["fcfs", "priority", "fair", "slack", "shortest"])
@pytest.mark.parametrize("asked", EXTREMES, ids=str)
@pytest.mark.parametrize("promised", [None, 5.0])
def test_no_field_of_a_body_puts_it_before_another_tenants(ordering: str, asked: dict, promised: float | None) -> None:
    """Everything is decided as if the field had not been sent."""
    tenants = [Tenant(name="chat", ttft_slo_s=1.0), Tenant(name="batch", priority=1, ttft_slo_s=promised)]
    assert finishing_order(ordering, tenants, **asked) == finishing_order(ordering, tenants)


@pytest.mark.parametrize(("ordering", "asked"), [("priority", EXTREMES[0]), ("slack", EXTREMES[2])])
def test_a_trusted_tenant_may_raise_itself(ordering: str, asked: dict) -> None:
    tenants = [Tenant(name="chat", ttft_slo_s=1.0), Tenant(name="batch", priority=1, may_raise_priority=True)]
    raised = finishing_order(ordering, tenants, **asked)
    assert raised.index("c0") > 150 > finishing_order(ordering, tenants).index("c0")


def test_a_request_may_lower_itself_within_its_tenant() -> None:
    engine = engine_of([Tenant(name="t", priority=1)], ordering="priority", max_num_seqs=1)
    for name, priority in (("last", 9), ("first", None), ("second", -5)):
        engine.add(request(name, [1], tenant="t", max_tokens=2, priority=priority))
    ended = []
    while engine.has_work:
        ended += [output.request_id for output in engine.step() if output.finish_reason is not None]
    assert ended == ["first", "second", "last"]


def test_an_own_objective_cannot_make_admission_refuse_or_spare_another() -> None:
    """A flood with the tightest objective is judged as one without; and it never gets another tenant refused."""
    for asked in ({}, {"ttft_slo_s": 1e-6}):
        engine = engine_of([Tenant(name="chat", ttft_slo_s=5.0), Tenant(name="batch")], admission="slo")
        for i in range(20):
            engine.add(request(f"b{i}", [0] * 50, tenant="batch", **asked))
        assert all(s.ttft_slo_s is None and s.forecast is None for s in engine.scheduler.waiting)


# --- the prefix cache -----------------------------------------------------------------------------------------


def cached(engine: Engine, name: str, **asked) -> int:
    """Prompt tokens that a request finds in the prefix cache, by admission and by the forecast before it."""
    (sequence,) = engine.add(request(name, list(range(100)), **({"max_tokens": 2} | asked)))
    expected = engine.scheduler.blocks.num_cached(sequence)
    while engine.has_work:
        engine.step()
    assert sequence.num_cached == expected
    return expected


def test_prefixes_of_one_tenant_are_no_others() -> None:
    tenants = [Tenant(name="a"), Tenant(name="b"), Tenant(name="x", shares_prefixes=True),
               Tenant(name="y", shares_prefixes=True)]  # fmt: skip
    engine = engine_of(tenants, enable_prefix_caching=True)
    assert cached(engine, "1", tenant="a") == 0
    assert cached(engine, "2", tenant="a") == 96
    assert cached(engine, "3", tenant="b") == 0
    assert cached(engine, "4", tenant="b", salt="a") == 0
    assert cached(engine, "5", tenant="default") == 0
    assert cached(engine, "6", tenant="x") == 0
    assert cached(engine, "7", tenant="y") == 96
    assert cached(engine, "8", tenant="b") == 96


def test_prefixes_of_a_line_of_a_batch_are_its_owners() -> None:
    engine = engine_of([Tenant(name="a"), Tenant(name="b"), Tenant(name="batch")], enable_prefix_caching=True)
    assert cached(engine, "1", tenant="batch", owner="a") == 0
    assert cached(engine, "2", tenant="batch", owner="b") == 0
    assert cached(engine, "3", tenant="batch") == 0
    assert cached(engine, "4", tenant="a") == 96


def test_prefixes_kept_in_host_memory_are_a_tenants_own() -> None:
    """What was evicted from the device comes back for its tenant alone."""
    cost = FormulaCost(source="made up", overhead_s=0.01, weights_s=0.0, token_s=0.001, pair_s=0.0, context_s=0.0,
                       row_s=0.0, kv_bytes_per_token=1, move_s_per_token=1e-9)  # fmt: skip
    config = EngineConfig.from_settings(num_blocks=20, block_size=8, offload_host_bytes=1000, overlap=False)
    engine = simulated_engine(config, cost, VirtualClock(), Tenants([Tenant(name="a"), Tenant(name="b")]))
    prompt = list(range(100))
    for i, (tenant, tokens) in enumerate([("a", prompt), ("b", [7] * 150)]):
        engine.add(request(str(i), tokens, tenant=tenant, max_tokens=2))
        while engine.has_work:
            engine.step()
    found = []
    for i, tenant in enumerate("ba"):
        (sequence,) = engine.add(request(f"again{i}", prompt, tenant=tenant, max_tokens=2))
        while engine.has_work:
            engine.step()
        found.append(sequence.num_cached)
    assert found[0] == 0 < found[1]
