"""The real engine on a virtual clock: times worked out by hand, and the same ones every time."""

import random

import pytest

from jaxserve.core.clock import VirtualClock
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError
from jaxserve.costs.model import FormulaCost
from jaxserve.sim.arrivals import Arrival, on_off, poisson
from jaxserve.sim.build import simulated_engine
from jaxserve.sim.drive import Lane, Served, drive, drive_lanes
from jaxserve.sim.sources import ClosedLoop

SECOND_A_TOKEN = FormulaCost(
    source="made up", overhead_s=1.0, weights_s=0.0, token_s=1.0, pair_s=0.0, context_s=0.0, row_s=0.0
)


def serve(arrivals: list[Arrival], cost: FormulaCost = SECOND_A_TOKEN, **settings) -> list[Served]:
    options = {"num_blocks": 100, "enable_prefix_caching": False, "overlap": False, "block_size": 8} | settings
    clock = VirtualClock(50.0)
    engine = simulated_engine(EngineConfig.from_settings(**options), cost, clock)
    return sorted(drive(engine, clock, arrivals), key=lambda served: (served.number, served.index))


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


def test_each_completion_is_reported_and_the_last_one_ends_the_request() -> None:
    """Both prompts of 3 in one step take 7 s, two decodes 3 s."""
    served = serve([Arrival(0.0, 3, 3, n=2)])
    assert [(s.number, s.index, s.last, s.token_s) for s in served] == [
        (0, 0, False, [7.0, 10.0, 13.0]),
        (0, 1, True, [7.0, 10.0, 13.0]),
    ]


def test_users_who_ask_for_two_completions_wait_for_both() -> None:
    """One user, who sends the second request when both completions of the first are there."""
    clock = VirtualClock()
    config = EngineConfig.from_settings(num_blocks=100, block_size=8, overlap=False)
    lane = Lane(simulated_engine(config, SECOND_A_TOKEN, clock), clock)
    served = list(drive_lanes([lane], ClosedLoop([Arrival(0.0, 3, 3, n=2)] * 2, users=1)))
    assert [s.number for s in served] == [0, 0, 1, 1] and {s.arrival_s for s in served[2:]} == {13.0}


@pytest.mark.parametrize(
    ("leaves", "token_s"),
    [
        ({"abort_tokens": 2}, [2.0, 4.0]),
        ({"abort_s": 5.0}, [2.0, 4.0, 6.0]),  # in the middle of the third step: between two steps it is seen
    ],
    ids=str,
)
def test_a_caller_that_closes_its_stream_gives_up_its_slot(leaves: dict, token_s: list[float]) -> None:
    one, two = serve([Arrival(0.0, 1, 50, **leaves), Arrival(0.0, 1, 1)], max_num_seqs=1)
    assert (one.token_s, one.failed) == (token_s, "aborted")
    assert two.token_s == [token_s[-1] + 2.0]


def test_a_caller_may_close_its_stream_while_its_request_waits() -> None:
    one, two = serve([Arrival(0.0, 1, 5), Arrival(0.0, 1, 5, abort_s=1.0)], max_num_seqs=1)
    assert not one.failed and (two.token_s, two.failed) == ([], "aborted")
    waits = {"policy": "static", "batch_size": 2, "max_num_seqs": 2}
    one, two = serve([Arrival(0.0, 1, 1, abort_s=5.0), Arrival(50.0, 1, 1)], **waits)
    assert (one.failed, two.token_s) == ("aborted", [52.0]), "it woke for the one, and waited on"


def test_a_request_brings_its_own_class_and_salt() -> None:
    one, two = serve([Arrival(0.0, 1, 1, priority=5), Arrival(0.0, 1, 1)], max_num_seqs=1, ordering="priority")
    assert (one.token_s, two.token_s) == ([4.0], [2.0])
    shared = [Arrival(at, 17, 1, prefix_blocks=(1, 2), block_tokens=8, cache_salt=salt) for at, salt in
              ((0.0, ""), (100.0, ""), (200.0, "x"))]  # fmt: skip
    assert [s.cached_tokens for s in serve(shared, enable_prefix_caching=True)] == [0, 16, 0]


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
