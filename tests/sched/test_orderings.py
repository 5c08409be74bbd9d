"""Who is next: bounds that hold for every list of arrivals, checked on the whole engine."""

import random
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxserve.core.clock import VirtualClock
from jaxserve.core.config import EngineConfig
from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.costs.model import FormulaCost
from jaxserve.engine.engine import Engine
from jaxserve.sim.arrivals import Arrival
from jaxserve.sim.build import simulated_engine
from jaxserve.sim.drive import Served, drive
from tests.engine.conftest import build_engine, request
from tests.engine.conftest import drive as drive_all

COST = FormulaCost(
    source="made up", overhead_s=0.01, weights_s=0.0, token_s=0.001, pair_s=0.0, context_s=0.0, row_s=0.0
)
BASE = {
    "num_blocks": 401, "block_size": 8, "enable_prefix_caching": False, "overlap": False, "max_num_batched_tokens": 64,
    "max_num_seqs": 4,
}  # fmt: skip


def engine_of(clock: VirtualClock, tenants: Tenants | None = None, **changes) -> Engine:
    return simulated_engine(EngineConfig.from_settings(**(BASE | changes)), COST, clock, tenants)


def serve(arrivals: list[Arrival], tenants: Tenants | None = None, **changes) -> list[Served]:
    clock = VirtualClock()
    return list(drive(engine_of(clock, tenants, **changes), clock, arrivals))


def backlog(rng: random.Random, count: int, **fields) -> list[Arrival]:
    return [Arrival(0.0, rng.randint(1, 120), rng.randint(1, 20), **fields) for _ in range(count)]


@settings(max_examples=30, deadline=None)
@example(arrivals=[(0.0, 0, 1)] * 3 + [(0.0, 0, 33), (0.0, 1, 1), (1e-50, 0, 1)], ageing=0.1)
@given(
    arrivals=st.lists(st.tuples(st.floats(0, 5), st.integers(0, 2), st.integers(1, 60)), min_size=2, max_size=40),
    ageing=st.sampled_from([0.1, 1.0, 3.0]),
)
def test_a_class_waits_no_longer_than_its_ageing(arrivals, ageing: float) -> None:
    """Nobody is overtaken by one of a class p higher that came more than p x ageing later."""
    tenants = Tenants([Tenant(name=str(c), priority=c) for c in range(3)])
    listed = [Arrival(at, prompt, 3, tenant=str(c)) for at, c, prompt in sorted(arrivals)]
    served = serve(listed, tenants, ordering="priority", priority_ageing_s=ageing, preempt_for_admission=False)
    begun = sorted(served, key=lambda s: (s.first_scheduled_s, s.number))
    longest_step = 0.01 + 0.001 * 64
    for i, late in enumerate(begun):
        for early in begun[:i]:
            if late.arrival.at_s + longest_step >= early.first_scheduled_s:
                continue  # it did not wait when the other one began
            if late.first_scheduled_s == early.first_scheduled_s:
                continue  # they began in one step
            classes = int(late.arrival.tenant) - int(early.arrival.tenant)
            assert early.arrival.at_s <= late.arrival.at_s + classes * ageing + longest_step


def test_the_shortest_goes_first_and_the_long_are_not_starved() -> None:
    long_one = Arrival(0.1, 1000, 2, kind="long")
    shorts = [Arrival(0.11 + 0.03 * i, 20, 2) for i in range(400)]
    first_come = serve([Arrival(0.0, 640, 1), long_one, *shorts], ordering="fcfs", max_num_seqs=16)
    shortest = serve(
        [Arrival(0.0, 640, 1), long_one, *shorts], ordering="shortest", shortest_ageing_s=1.0, max_num_seqs=16
    )

    def ttft(run: list[Served], kind: str, at_most: float = 2.0) -> float:
        return max(s.ttft_s for s in run if s.arrival.kind == kind and s.number and s.arrival.at_s < at_most)

    assert ttft(shortest, "") < 0.5 * ttft(first_come, "")
    assert ttft(shortest, "long") < 10.0, "shorts come for 12 s; the long one does not wait for their end"


def test_vtc_keeps_two_backlogged_tenants_together() -> None:
    """|W_a - W_b| <= 2 max(w_in L, w_out M): Sheng et al. 2024, theorem 4.4."""
    rng = random.Random(7)
    clock = VirtualClock()
    engine = engine_of(clock, Tenants([Tenant(name="a"), Tenant(name="b")]), ordering="fair", max_num_seqs=8)
    bound = 2.0 * max(1.0 * 120, 2.0 * 3200)
    mixed = backlog(rng, 600, tenant="a") + backlog(rng, 60, tenant="b")
    rng.shuffle(mixed)
    service: Counter[str] = Counter()
    widest = 0.0
    for s in drive(engine, clock, mixed):
        service[s.arrival.tenant] += s.arrival.prompt_tokens + 2 * s.arrival.output_tokens
        if not any(s.tenant == "b" for s in engine.scheduler.waiting):
            break
        widest = max(widest, abs(service["a"] - service["b"]))
    assert service["b"] > 2000, "b was served"
    assert widest <= bound
    assert widest < 1500, "and in this run it stays far below the bound"


def test_weights_share_the_machine() -> None:
    rng = random.Random(3)
    tenants = Tenants([Tenant(name="a", weight=3.0), Tenant(name="b", weight=1.0)])
    clock, service = VirtualClock(), Counter()
    engine = engine_of(clock, tenants, ordering="fair")
    for s in drive(engine, clock, backlog(rng, 300, tenant="a") + backlog(rng, 300, tenant="b")):
        service[s.arrival.tenant] += s.arrival.prompt_tokens + 2 * s.arrival.output_tokens
        if not any(s.tenant == "a" for s in engine.scheduler.waiting):
            break
    assert service["a"] / service["b"] == pytest.approx(3.0, rel=0.1)


def test_being_idle_earns_no_credit() -> None:
    rng = random.Random(5)
    tenants = Tenants([Tenant(name="a"), Tenant(name="b")])
    late = [Arrival(3.0, a.prompt_tokens, a.output_tokens, "b") for a in backlog(rng, 200)]
    served = serve(backlog(rng, 400, tenant="a") + late, tenants, ordering="fair")
    after = Counter(s.arrival.tenant for s in served if 3.5 < s.token_s[0] < 8.0)
    assert 0.4 < after["b"] / (after["a"] + after["b"]) < 0.6


def test_fairness_by_time_charges_what_the_device_spends() -> None:
    """Tenant b's requests are all prompt, a's all output: equal tokens are not equal time."""
    rng = random.Random(2)
    tenants = Tenants([Tenant(name="a"), Tenant(name="b")])
    mixed = [Arrival(0.0, 4, 40, "a") for _ in range(200)] + [Arrival(0.0, 100, 1, "b") for _ in range(200)]
    rng.shuffle(mixed)
    shares = {}
    for fairness in ("tokens", "time"):
        done = [s.arrival.tenant for s in serve(mixed, tenants, ordering="fair", fairness=fairness)][:120]
        shares[fairness] = done.count("b") / len(done)
    assert shares["tokens"] != pytest.approx(shares["time"], abs=0.02)


def test_tokens_computed_again_are_charged_once() -> None:
    tight = build_engine(blocks=9, max_model_len=64, watermark=0.0, prefix=False, ordering="fair")
    sequences = [tight.add(request(str(i), [i] * (5 + 2 * i), max_tokens=30))[0] for i in range(8)]
    drive_all(tight)
    assert sum(s.preemptions for s in sequences) > 3, "the pool was to be too small"
    assert tight.scheduler._ordering.counters == {"default": sum(5 + 2 * i for i in range(8)) + 2.0 * 8 * 30}


def test_each_completion_has_an_arrival_number_of_its_own() -> None:
    engine = build_engine()
    sequences = [s for name, n in (("a", 3), ("b", 2)) for s in engine.add(request(name, [1], n=n))]
    assert [s.arrival for s in sequences] == [1, 2, 3, 4, 5]


def test_least_slack_serves_the_nearest_deadline() -> None:
    tenants = Tenants([Tenant(name="soon", ttft_slo_s=1.0), Tenant(name="later", ttft_slo_s=30.0)])
    listed = [Arrival(0.0, 100, 2, "later") for _ in range(20)] + [Arrival(0.0, 100, 2, "soon") for _ in range(5)]
    served = serve(listed, tenants, ordering="slack")
    assert {s.arrival.tenant for s in sorted(served, key=lambda s: s.token_s[0])[:5]} == {"soon"}


def test_under_overload_least_slack_turns_to_the_shortest() -> None:
    tenants = Tenants([Tenant(name="t", ttft_slo_s=2.0)])
    rng = random.Random(9)
    listed = sorted(
        (Arrival(rng.uniform(0, 3), rng.choice([20, 20, 20, 400]), 2, "t") for _ in range(300)), key=lambda a: a.at_s
    )
    met = {
        ordering: sum(s.ttft_s <= 2.0 for s in serve(listed, tenants, ordering=ordering))
        for ordering in ("fcfs", "slack")
    }
    assert met["slack"] > 1.3 * met["fcfs"]
