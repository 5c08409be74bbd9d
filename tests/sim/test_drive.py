"""The real engine on a virtual clock: times worked out by hand, and the same ones every time."""

import random

import pytest

from jaxserve.core.clock import VirtualClock
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError
from jaxserve.costs.model import FormulaCost
from jaxserve.sim.arrivals import Arrival, on_off, poisson
from jaxserve.sim.build import simulated_engine
from jaxserve.sim.drive import Served, drive

SECOND_A_TOKEN = FormulaCost(
    source="made up", overhead_s=1.0, weights_s=0.0, token_s=1.0, pair_s=0.0, context_s=0.0, row_s=0.0
)


def serve(arrivals: list[Arrival], cost: FormulaCost = SECOND_A_TOKEN, **settings) -> list[Served]:
    options = {"num_blocks": 100, "enable_prefix_caching": False, "overlap": False, "block_size": 8} | settings
    clock = VirtualClock(50.0)
    engine = simulated_engine(EngineConfig.from_settings(**options), cost, clock)
    return sorted(drive(engine, clock, arrivals), key=lambda served: served.number)


def test_one_request_by_hand() -> None:
    """A step is 1 s and 1 s a token: the prompt of 3 takes 4 s, each later token 2 s."""
    served = serve([Arrival(1.0, 3, 3)])[0]
    assert served.token_s == [5.0, 7.0, 9.0]
    assert (served.ttft_s, served.tpot_s, served.e2e_s) == (4.0, 2.0, 8.0)


def test_two_requests_share_steps() -> None:
    """The second arrives in the first one's prefill and is prefilled beside its first decode: 1 + 1 + 2 s."""
    one, two = serve([Arrival(0.0, 3, 3), Arrival(1.0, 2, 2)])
    assert one.token_s == [4.0, 8.0, 11.0] and two.token_s == [8.0, 11.0]


def test_overlap_plans_a_step_ahead() -> None:
    """What arrives while a step runs joins the step after the one that is planned already."""
    one, two = serve([Arrival(0.0, 3, 4), Arrival(1.0, 2, 2)], overlap=True)
    assert one.token_s == [4.0, 6.0, 10.0, 13.0] and two.token_s == [10.0, 13.0]


def test_time_passes_between_arrivals() -> None:
    assert [s.token_s for s in serve([Arrival(0.0, 1, 1), Arrival(100.0, 1, 1)])] == [[2.0], [102.0]]


def test_what_cannot_be_served_is_reported_and_harms_nobody() -> None:
    served = serve([Arrival(0.0, 2000, 1), Arrival(0.0, 1, 1)])
    assert served[0].refused == "cannot_fit" and "larger num_blocks" in served[0].why and served[1].token_s == [2.0]
    served = serve([Arrival(0.0, 10**13, 1), Arrival(0.0, 1, 1)])
    assert "has 10000000000000 tokens" in served[0].why, "and no prompt of that length was made"
    served = serve([Arrival(0.0, 4, 4)] * 3, max_waiting=2)
    assert [s.refused for s in served] == ["", "", "queue_full"]


def test_equal_seeds_are_equal_runs() -> None:
    def run() -> list[list[float]]:
        rng = random.Random(4)
        times = poisson(rng, 0.2)
        return [
            s.token_s for s in serve([Arrival(next(times), rng.randint(1, 40), rng.randint(1, 9)) for _ in range(60)])
        ]

    assert run() == run()


def test_a_pool_must_be_given() -> None:
    with pytest.raises(ConfigError, match="num_blocks"):
        simulated_engine(EngineConfig(), SECOND_A_TOKEN, VirtualClock())


def test_a_spike_is_a_spike() -> None:
    times = []
    for at in on_off(random.Random(1), 2.0, 10.0, 40.0, 15.0, 30.0):
        if at > 4000.0:
            break
        times.append(at)
    spikes = sum(15.0 <= at % 40.0 < 30.0 for at in times)
    assert abs(spikes / 1500.0 - 10.0) < 0.5 and abs((len(times) - spikes) / 2500.0 - 2.0) < 0.2
