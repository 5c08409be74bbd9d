"""The ordering `fair`, whatever two tenants send: no credit is banked, no debt is kept, and no window starves one."""

import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import takewhile
from math import inf

import pytest

from jaxserve.core.clock import VirtualClock
from jaxserve.core.config import EngineConfig
from jaxserve.core.sequence import Sequence
from jaxserve.core.step_record import StepRecord
from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.costs.model import FormulaCost
from jaxserve.engine.engine import Engine
from jaxserve.sim.arrivals import Arrival, poisson
from jaxserve.sim.build import simulated_engine
from jaxserve.sim.drive import drive

COST = FormulaCost(
    source="made up", overhead_s=0.004, weights_s=0.0, token_s=0.0001, pair_s=0.0, context_s=0.0, row_s=0.0002
)
SLOTS, BUDGET, BLOCKS = 16, 256, 400
INPUT, OUTPUT = 1.0, 2.0
LONGEST_PROMPT, LONGEST_OUTPUT = 200, 250
SECONDS, WINDOW_S = 40.0, 5.0
SETTINGS = {
    "ordering": "fair", "max_num_seqs": SLOTS, "max_num_batched_tokens": BUDGET, "block_size": 16,
    "num_blocks": BLOCKS + 1, "enable_prefix_caching": False, "overlap": False,
}  # fmt: skip


def pattern(rng: random.Random, tenant: str) -> list[Arrival]:
    """Phases of some seconds: nothing, one sequence live at all times, bursts, or twice what the machine serves."""
    found: list[Arrival] = []
    at = 0.0
    while at < SECONDS:
        end = min(at + rng.choice([3.0, 8.0, 15.0, 30.0]), SECONDS)
        prompt, output = rng.choice([(16, 16), (120, 60), (LONGEST_PROMPT, 10), (20, LONGEST_OUTPUT)])
        match rng.choice(["idle", "light", "bursts", "heavy", "heavy"]):
            case "light":
                prompt, output = 20, LONGEST_OUTPUT
                times = [at + i for i in range(int(end - at))]
            case "bursts":
                times = [at + 2.0 * i for i in range(int((end - at) / 2.0)) for _ in range(rng.randint(4, 40))]
            case "heavy":
                times = list(takewhile(lambda t, end=end: t < end, poisson(rng, 6000.0 / (prompt + output), at)))
            case _:
                times = []
        found += [Arrival(t, rng.randint(1, prompt), rng.randint(1, output), tenant) for t in times]
        at = end
    return found


@dataclass
class Meter:
    """Weighted service of each tenant, step by step, and who waited."""

    engine: Engine
    steps: list[tuple[float, dict[str, float], frozenset[str]]] = field(default_factory=list)
    _charged: Counter[Sequence] = field(default_factory=Counter)

    def observe(self, record: StepRecord) -> None:
        served = Counter[str]()
        if record.step is not None:
            for sequence, row in zip(record.step.sequences, record.step.plan.rows, strict=True):
                end = row.start + row.length
                inputs = min(end, sequence.num_prompt) - max(row.start, self._charged[sequence])
                self._charged[sequence] = max(self._charged[sequence], end)
                served[sequence.tenant] += INPUT * max(inputs, 0) + OUTPUT * row.wants.token
        waiting = frozenset(s.tenant for s in self.engine.scheduler.waiting)
        self.steps.append((record.now, dict(served), waiting))


def measured(seed: int, tenants: Tenants, **changes: object) -> Meter:
    rng = random.Random(seed)
    arrivals = sorted((a for t in ("a", "b") for a in pattern(rng, t)), key=lambda a: a.at_s)
    clock = VirtualClock()
    engine = simulated_engine(EngineConfig.from_settings(**(SETTINGS | changes)), COST, clock, tenants)
    meter = Meter(engine)
    engine.observers += (meter,)
    for served in drive(engine, clock, arrivals):
        if served.token_s and served.token_s[-1] > SECONDS + 10:
            break
    return meter


def worst_share(meter: Meter, tenant: str, share: float) -> float:
    """The least service of a window of `WINDOW_S` in which the tenant always had something waiting, over its share."""
    worst, begin = 1.0, 0
    own = total = 0.0
    for end, (now, served, waiting) in enumerate(meter.steps):
        if tenant not in waiting:
            begin, own, total = end + 1, 0.0, 0.0
            continue
        own += served.get(tenant, 0.0)
        total += sum(served.values())
        while now - meter.steps[begin][0] > WINDOW_S:
            if total:
                worst = min(worst, own / total / share)
            own -= meter.steps[begin][1].get(tenant, 0.0)
            total -= sum(meter.steps[begin][1].values())
            begin += 1
    return worst


def widest_gap(meter: Meter, tenants: Tenants) -> float:
    """The largest difference of weighted service in any window in which both tenants always had something waiting."""
    widest = difference = low = high = 0.0
    for _, served, waiting in meter.steps:
        if waiting != {"a", "b"}:
            difference = low = high = 0.0
            continue
        difference += served.get("a", 0.0) / tenants["a"].weight - served.get("b", 0.0) / tenants["b"].weight
        low, high = min(low, difference), max(high, difference)
        widest = max(widest, high - low)
    return widest


BOUND = 2.0 * max(INPUT * LONGEST_PROMPT, OUTPUT * BLOCKS * 16)
"""Sheng et al. 2024, theorem 4.4."""
WEIGHTS = [(1.0, 1.0), (3.0, 1.0)]


def check_bounds(seed: int, weights: tuple[float, float], **changes: object) -> Meter:
    tenants = Tenants([Tenant(name=name, weight=weight) for name, weight in zip("ab", weights, strict=True)])
    meter = measured(seed, tenants, **changes)
    assert widest_gap(meter, tenants) < BOUND
    for tenant in "ab":
        assert worst_share(meter, tenant, tenants[tenant].weight / sum(weights)) >= 0.8
    return meter


@pytest.mark.parametrize(("seed", "weights"), [(2, WEIGHTS[0]), (2, WEIGHTS[1]), (3, WEIGHTS[1]), (7, WEIGHTS[0])])
def test_a_backlogged_tenant_gets_its_share_in_every_window(seed: int, weights: tuple[float, float]) -> None:
    meter = check_bounds(seed, weights)
    assert sum(waiting == {"a", "b"} for _, _, waiting in meter.steps) > 500, "both were backlogged for a while"


@pytest.mark.slow
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("seed", range(20, 26))
@pytest.mark.parametrize(
    "changes",
    [{}, {"num_blocks": 101}, {"overlap": True, "policy": "adaptive"}],
    ids=["plain", "few blocks", "overlapped and adaptive"],
)
def test_the_share_holds_in_any_configuration(
    seed: int, weights: tuple[float, float], changes: dict[str, object]
) -> None:
    check_bounds(seed, weights, **changes)


def rates(arrivals: list[Arrival], from_s: float, to_s: float, tenants: Tenants | None = None, **changes: object):
    """Output tokens of each tenant between two times, and the longest wait of each for a first token."""
    clock = VirtualClock()
    tenants = tenants or Tenants([Tenant(name="a"), Tenant(name="b")])
    engine = simulated_engine(EngineConfig.from_settings(**(SETTINGS | changes)), COST, clock, tenants)
    tokens, waits = Counter[str](), dict[str, float]()
    for served in drive(engine, clock, sorted(arrivals, key=lambda a: a.at_s)):
        tenant = served.arrival.tenant
        tokens[tenant] += sum(from_s <= at < to_s for at in served.token_s)
        if from_s <= served.arrival.at_s < to_s and served.token_s:
            waits[tenant] = max(waits.get(tenant, 0.0), served.ttft_s)
        if served.token_s and served.token_s[-1] > to_s + 2.0:
            break
    return tokens, waits


def heavy(tenant: str, from_s: float, to_s: float, prompt: int = 120, output: int = 60) -> list[Arrival]:
    count = int((to_s - from_s) * 6000 / (prompt + output))
    return [Arrival(from_s + i * (to_s - from_s) / count, prompt, output, tenant) for i in range(count)]


def test_a_light_tenant_earns_no_credit_while_it_lacks_nothing() -> None:
    light = [Arrival(0.5 * i, 20, 120, "b") for i in range(40)]
    tokens, _ = rates(heavy("a", 0.0, 30.0) + light + heavy("b", 20.0, 30.0), 21.0, 30.0)
    assert 0.45 < tokens["a"] / (tokens["a"] + tokens["b"]) < 0.55


def test_what_was_served_while_no_other_tenant_waited_is_no_debt() -> None:
    alone, last = heavy("a", 0.0, 10.0), [Arrival(40.0, 20, 20, "b")]
    tokens, _ = rates(alone + last + heavy("b", 50.0, 60.0) + heavy("a", 50.0, 60.0), 50.5, 60.0)
    assert 0.45 < tokens["a"] / (tokens["a"] + tokens["b"]) < 0.55


def test_a_tenant_at_a_limit_of_its_own_earns_no_credit() -> None:
    """Outputs of b are booked as long; its `kv_max` keeps it below its part. Then they become short."""
    tenants = Tenants([Tenant(name="a"), Tenant(name="b", kv_max=0.1)])
    small = heavy("b", 0.0, 20.0, 20, 250)[:100] + heavy("b", 20.0, 40.0, 20, 8)
    tokens, _ = rates(heavy("a", 0.0, 40.0) + small, 36.0, 40.0, tenants)
    assert tokens["a"] > 0.4 * (tokens["a"] + tokens["b"])


@pytest.mark.parametrize(("prompt", "output"), [(20, 900), (2000, 100), (10, 4)], ids=["outputs", "prompts", "flood"])
def test_a_neighbour_that_holds_all_it_can_costs_a_small_tenant_no_wait(prompt: int, output: int) -> None:
    small = [Arrival(6.0 + 0.5 * i, 60, 40, "a") for i in range(12)]
    _, waits = rates(heavy("b", 0.0, 12.0, prompt, output) + small, 6.0, 12.0)
    assert waits["a"] < 0.3
    assert waits.get("b", inf) > 1.0, "the neighbour has sent more than it can be served"


def test_a_prompt_larger_than_its_tenants_part_does_not_hold_up_another_tenant() -> None:
    """It waits until its tenant's own sequences have left it enough blocks; a's small ones pass it."""
    giant = [Arrival(5.0, 5000, 10, "b")]
    small = [Arrival(5.1 + 0.3 * i, 60, 20, "a") for i in range(20)]
    _, waits = rates(heavy("b", 0.0, 6.0, 200, 250) + giant + small, 5.05, 12.0, max_model_len=6000)
    assert waits["a"] < 0.3
