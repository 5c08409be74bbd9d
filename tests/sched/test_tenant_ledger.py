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
    assert caught.value.reason == "queue_full" and caught.value.retry_after_s > 0
    with pytest.raises(InvalidParameter, match=r"at most max_waiting of tenant 't' \(2\)"):
        engine.add(request("e", [1], tenant="t", n=3))
    engine.add(request("d", [1], tenant="other"))


def test_rates_are_bounded_and_say_when_to_come_back() -> None:
    clock = VirtualClock(5.0)
    engine = engine_of([Tenant(name="t", requests_per_s=2.0)], clock)
    for name in "ab":
        engine.add(request(name, [1], tenant="t"))
    with pytest.raises(TooBusy, match="2 requests a second") as caught:
        engine.add(request("c", [1], tenant="t"))
    assert caught.value.reason == "rate_limit" and caught.value.retry_after_s == pytest.approx(0.5)
    clock.advance(0.5)
    engine.add(request("c", [1], tenant="t"))


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
