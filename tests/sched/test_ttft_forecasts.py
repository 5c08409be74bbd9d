"""What yields to a promised request whose first token would be late, what does not, and what is refused."""

import random

import pytest

from jaxserve.core.clock import VirtualClock
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import TooBusy
from jaxserve.core.sampling import SamplingParams
from jaxserve.core.sequence import Request, Sequence
from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.costs.model import FormulaCost
from jaxserve.engine.engine import Engine
from jaxserve.sched.orderings import ORDERINGS
from jaxserve.sim.build import simulated_engine

COST = FormulaCost(
    source="made up", overhead_s=0.01, weights_s=0.0, token_s=0.001, pair_s=0.0, context_s=0.0, row_s=0.0
)
TENANTS = [
    Tenant(name="chat", ttft_slo_s=0.5),
    Tenant(name="peer", ttft_slo_s=100.0),
    Tenant(name="same"),
    Tenant(name="lower", priority=1),
    Tenant(name="lower_promised", priority=1, ttft_slo_s=5.0),
    Tenant(name="higher", priority=-1),
    Tenant(name="guaranteed", priority=1, kv_guaranteed=0.5),
]


class Served:
    """An engine with 64 tokens a step, each of which takes 74 ms, and whose queue is first come, first served."""

    def __init__(self, tenants: list[Tenant] = TENANTS, **changes) -> None:
        settings = {
            "num_blocks": 401, "block_size": 8, "enable_prefix_caching": False, "overlap": False, "admission": "slo",
            "max_num_batched_tokens": 64, "max_num_seqs": 8, "prefill_rows": 8,
        }  # fmt: skip
        self.engine: Engine = simulated_engine(
            EngineConfig.from_settings(**(settings | changes)), COST, VirtualClock(), Tenants(tenants)
        )
        self.order: list[str] = []
        self._number = 0

    def add(self, tenant: str, prompt: int = 50, outputs: int = 4, **fields) -> Sequence:
        self._number += 1
        request = Request(
            id=f"{tenant} {self._number}", prompt=(self._number,) * prompt, tenant=tenant, **fields,
            params=SamplingParams(max_tokens=outputs),
        )  # fmt: skip
        return self.engine.add(request)[0]

    def run(self) -> list[str]:
        """Tenants in the order of their first tokens."""
        seen: dict[str, None] = {}
        while self.engine.has_work:
            for output in self.engine.step():
                seen[output.request_id] = None
        return [name.split()[0] for name in seen]


@pytest.mark.parametrize("tenant", ["same", "lower", "lower_promised"])
def test_work_that_was_promised_less_gives_way(tenant: str) -> None:
    served = Served()
    for _ in range(20):
        served.add(tenant, ttft_slo_s=100.0)
    chat = served.add("chat")
    assert chat.forecast is not None and chat.forecast.expected_s < 0.2, "what is ahead of it does not count"
    assert served.run()[:2].count("chat") == 1


@pytest.mark.parametrize("tenant", ["peer", "higher", "guaranteed"])
def test_other_promises_do_not_give_way(tenant: str) -> None:
    """Not those of its own class, nor a higher class, nor a tenant that holds less than its guarantee."""
    served = Served()
    served.engine.step()
    for _ in range(20):
        served.add(tenant)
    with pytest.raises(TooBusy, match=r"the objective is 0\.5 s"):
        served.add("chat")


def test_what_is_in_time_anyhow_makes_nothing_give_way() -> None:
    served = Served()
    for _ in range(3):
        served.add("lower")
    served.add("chat")
    assert served.run() == ["lower"] * 3 + ["chat"]


def test_a_request_that_is_late_without_any_other_work_is_refused_for_its_own() -> None:
    served = Served()
    served.add("lower")
    with pytest.raises(TooBusy, match=r"after 0\.\d\d s and the objective is 0\.5 s"):
        served.add("chat", prompt=600)
    assert served.run() == ["lower"]


def test_an_objective_in_a_body_makes_nothing_give_way() -> None:
    served = Served()
    for _ in range(20):
        served.add("lower")
    served.add("same", ttft_slo_s=0.01)
    assert served.run() == ["lower"] * 20 + ["same"]


def test_what_gave_way_goes_on_when_the_first_token_is_there() -> None:
    served = Served()
    waiting = [served.add("lower", outputs=40) for _ in range(20)]
    chat = served.add("chat", outputs=400)
    while chat.first_token_s is None:
        served.engine.step()
    begun = sum(s.first_token_s is not None for s in waiting)
    for _ in range(4):
        served.engine.step()
    assert sum(s.first_token_s is not None for s in waiting) > begun


def test_an_aborted_request_makes_nothing_give_way_any_more() -> None:
    served = Served()
    for _ in range(20):
        served.add("same")
    chat = served.add("chat")
    served.engine.abort(chat.request.id)
    last = served.add("chat", ttft_slo_s=100.0)
    while last.first_token_s is None:
        served.engine.step()
    assert not any(s.tenant == "same" for s in served.engine.scheduler.waiting)


@pytest.mark.parametrize("preempts", [True, False])
def test_a_forecast_counts_the_slots_that_can_be_taken(preempts: bool) -> None:
    """Every slot is held by long outputs of a lower class."""
    served = Served(ordering="priority", preempt_for_admission=preempts, admission="queue")
    running = [served.add("lower", prompt=8, outputs=400) for _ in range(8)]
    while any(s.first_token_s is None for s in running):
        served.engine.step()
    chat = [served.add("chat", prompt=8, outputs=400) for _ in range(4)]
    forecasts = [s.forecast.expected_s for s in chat if s.forecast is not None]
    if preempts:
        assert max(forecasts) < 0.3
    else:
        assert min(forecasts) > 0.3, "one of eight outputs of 400 tokens ends after fifty steps of 18 ms"


def test_a_tenant_that_fair_owes_service_goes_first_until_it_has_caught_up() -> None:
    """Twenty prompts of 50 tokens wait. Of them as many count as the counters are apart."""
    served = Served(ordering="fair")
    for _ in range(20):
        served.add("same")
    counters = served.engine.scheduler._ordering.counters
    counters |= {"same": 0.0, "chat": 90.0}
    chat = served.add("chat")
    assert chat.forecast is not None and chat.forecast.model_s == pytest.approx(3 * 0.01 + 0.15 + 2 * 0.001, abs=0.01)
    served.engine.abort(chat.request.id)
    counters["chat"] = 900.0
    with pytest.raises(TooBusy):
        served.add("chat")


@pytest.mark.parametrize("policy", ["chunked", "adaptive", "continuous"])
@pytest.mark.parametrize("ordering", ORDERINGS)
def test_whatever_gives_way_ends_all_the_same(policy: str, ordering: str) -> None:
    """Random arrivals of all tenants in a small pool: all that were queued end, and nothing is expedited for ever."""
    rng, served = random.Random(7), Served(policy=policy, ordering=ordering, num_blocks=60, tpot_slo_s=0.1)
    queued, expedited = 0, 0
    roster = served.engine.scheduler._roster
    for _ in range(150):
        for _ in range(rng.randint(0, 2)):
            name = rng.choice(TENANTS).name
            try:
                served.add(name, prompt=rng.randint(1, 120), outputs=rng.randint(1, 40))
                queued += 1
            except TooBusy:
                pass
        expedited += bool(roster._expedited)
        if rng.random() < 0.1 and served.engine.scheduler.waiting:
            served.engine.abort(next(iter(served.engine.scheduler.waiting)).request.id)
        served.engine.step()
    served.run()
    pool = served.engine.scheduler.blocks.pool
    assert queued > 50 and (expedited or ordering == "slack"), "slack serves promises first anyhow"
    assert not roster._expedited and not roster.waiting and not roster.running and pool.num_free == pool.capacity
