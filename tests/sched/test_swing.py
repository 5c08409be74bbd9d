"""On a machine whose steps take four times as long for 20 s the promised tenant is served, and the flood waits."""

import random
from dataclasses import replace

import pytest

from jaxserve.core.clock import VirtualClock
from jaxserve.core.config import EngineConfig
from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.costs.model import CostModel, FormulaCost
from jaxserve.costs.step_costs import StepCosts
from jaxserve.metrics.distribution import percentile
from jaxserve.sim.drive import Served
from tests.sched.swinging import Caller, Swinging, call, swinging_engine

COST = FormulaCost(
    source="made up", overhead_s=0.002, weights_s=0.0, token_s=5e-5, pair_s=0.0, context_s=0.0, row_s=6e-4, padded=True
)
"""Sixteen rows take 12.4 ms. Four times that is more than the objective of 50 ms, which four rows alone would keep."""
BEGIN_S, END_S, UNTIL_S = 6.0, 26.0, 36.0
PERIODS = {"before": (1.0, BEGIN_S), "during": (BEGIN_S, END_S), "after": (END_S, UNTIL_S)}
TENANTS = [
    Tenant(name="chat", ttft_slo_s=0.5, tpot_slo_s=0.05, kv_guaranteed=0.3),
    Tenant(name="batch", priority=1, kv_max=0.95),
]
SETTINGS = {
    "max_num_seqs": 16, "max_num_batched_tokens": 256, "prefill_buckets": (64, 128, 256), "decode_buckets": (4, 16),
    "mixed_decode_buckets": (16,), "prefill_rows": 4, "block_size": 32, "num_blocks": 400, "max_waiting": 1000,
}  # fmt: skip


def swing(model: CostModel | None = COST, tenants: list[Tenant] = TENANTS, flood: int = 60, **changes) -> list[Served]:
    """Four callers with an objective beside many without. `model`: what the engine knows; None: it learns."""
    clock, rng = VirtualClock(), random.Random(1)
    config = EngineConfig.from_settings(**(SETTINGS | changes))
    machine = Swinging(COST, clock, 4.0, BEGIN_S, END_S)
    engine = swinging_engine(config, machine, clock, StepCosts(model), Tenants(tenants), 400)
    callers = [Caller("batch", rng.randint(20, 120), 200) for _ in range(flood)]
    callers += [Caller("chat", 120 + 7 * i, 40, 0.1, 0.5 + 0.13 * i) for i in range(4)]
    return call(engine, clock, callers, UNTIL_S)


def chat(served: list[Served], period: str) -> list[Served]:
    begin_s, end_s = PERIODS[period]
    return [s for s in served if s.tenant == "chat" and begin_s <= s.arrival_s < end_s]


def late(served: list[Served]) -> int:
    return sum(s.ttft_s > 0.5 for s in served)


def slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("policy", "ordering", "model"),
    [("adaptive", "fcfs", COST), ("adaptive", "priority", None), ("adaptive", "fair", COST), ("chunked", "fcfs", None),
     slow("adaptive", "slack", COST), slow("adaptive", "slack", None), slow("chunked", "priority", COST),
     slow("chunked", "fair", None), slow("chunked", "slack", COST), slow("adaptive", "shortest", COST)],
)  # fmt: skip
def test_the_promised_tenant_is_served_in_time(policy: str, ordering: str, model: CostModel | None) -> None:
    served = swing(model, policy=policy, ordering=ordering, admission="slo")
    for period in PERIODS:
        own = chat(served, period)
        assert len(own) > 15 and not any(s.refused for s in own) and not late(own), period
    assert sum(bool(s.token_s) for s in served if s.tenant == "batch") > 50, "the flood is served beside it"


@pytest.mark.parametrize("ordering", ["fcfs", slow("priority")])
def test_a_class_is_enough(ordering: str) -> None:
    """Without a guarantee of blocks the flood yields because its class is lower."""
    tenants = [replace(TENANTS[0], kv_guaranteed=0.0), TENANTS[1]]
    served = swing(tenants=tenants, policy="adaptive", ordering=ordering, admission="slo")
    for period in PERIODS:
        own = chat(served, period)
        assert len(own) > 15 and not any(s.refused for s in own) and not late(own), period


KNOWN = "under fair its P99 during the swing is up to 1.22 of chunked's (0.27 s; the objective is 0.5 s)"


@pytest.mark.parametrize(
    "ordering",
    [
        "priority",
        pytest.param("fair", marks=[pytest.mark.slow, pytest.mark.xfail(reason=KNOWN, strict=True)]),
        slow("slack"),
    ],
)
def test_adaptive_keeps_the_promise_as_well_as_chunked(ordering: str) -> None:
    runs = {policy: swing(policy=policy, ordering=ordering) for policy in ("chunked", "adaptive")}
    for period in PERIODS:
        p99 = {policy: percentile([s.ttft_s for s in chat(run, period)], 99) for policy, run in runs.items()}
        assert p99["adaptive"] <= 1.1 * p99["chunked"], period


def test_a_forecast_that_is_wrong_by_a_factor_corrects_itself() -> None:
    """The model says that steps take eight times what they take, and refuses all: trials and the pace put it right."""
    wrong = replace(COST, overhead_s=8 * COST.overhead_s, token_s=8 * COST.token_s, row_s=8 * COST.row_s)
    served = swing(wrong, flood=0, policy="chunked", ordering="fcfs", admission="slo")
    refused = [s.arrival_s for s in chat(served, "before") if s.refused]
    assert all(at_s < 3.0 for at_s in refused), "within seconds"


def test_admission_recovers_when_the_swing_ends() -> None:
    """The promised tenant alone is more than the slow machine can serve: it is refused then, and not for long after."""
    clock = VirtualClock()
    config = EngineConfig.from_settings(**(SETTINGS | {"policy": "adaptive", "admission": "slo"}))
    machine = Swinging(COST, clock, 16.0, BEGIN_S, END_S)
    engine = swinging_engine(config, machine, clock, StepCosts(COST), Tenants(TENANTS), 400)
    callers = [Caller("chat", 120 + i, 40, 0.1, 0.05 * i) for i in range(12)]
    served = call(engine, clock, callers, UNTIL_S)
    refused = [s.arrival_s for s in served if s.refused]
    assert sum(BEGIN_S < at_s < END_S for at_s in refused) > 50 and not any(at_s < BEGIN_S for at_s in refused)
    assert not any(at_s > END_S + 1.0 for at_s in refused), "within a second"
    own = [s for s in served if s.token_s and s.arrival_s > END_S + 1.0]
    assert len(own) > 100 and not late(own)
