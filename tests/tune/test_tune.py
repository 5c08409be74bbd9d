"""The search finds what enumeration finds, for a fifth of its price; bucket sets are charged; failures say why."""

import dataclasses
import math

import pytest

from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError
from jaxserve.metrics.slo import Bound
from jaxserve.sched.buckets import BucketTable
from jaxserve.sched.cost_model import FormulaCost
from jaxserve.sim.workload import Workload
from jaxserve.tune import bucket_sets
from jaxserve.tune.halving import Rung, halve, rungs
from jaxserve.tune.search import search
from jaxserve.tune.space import Space, parse_choice, settings
from jaxserve.tune.trial import Problem, Trial, evaluate

COST = FormulaCost(
    source="made up", overhead_s=0.002, weights_s=0.004, token_s=4e-5, pair_s=2e-9, context_s=4e-8, row_s=1e-5,
    padded=True,
)  # fmt: skip
BASE = EngineConfig.from_settings(
    num_blocks=4000, block_size=16, enable_prefix_caching=False, max_waiting=100_000, max_num_seqs=64
)
REQUESTS = 800
PROBLEM = Problem(
    BASE,
    Workload(arrivals="gamma:20,2", prompt_tokens="lognormal:5.5,1,16,2000", output_tokens="lognormal:2.7,0.7,2,100",
             requests=REQUESTS),
    COST,
    Bound.parse_all("ttft_p99<0.6,tpot_p99<0.03"),
)  # fmt: skip
GRID = Space(
    {
        "policy": ("chunked/fcfs", "chunked/shortest", "continuous/fcfs"),
        "max_num_batched_tokens": (128, 512, 2048),
        "max_num_seqs": (8, 32, 64),
        "buckets": ("single", "powers4", "powers2"),
    }
)


@pytest.mark.slow
def test_it_finds_the_best_of_a_grid_for_a_fifth_of_the_price() -> None:
    every = [evaluate(PROBLEM, choice, REQUESTS) for choice in GRID.candidates(BASE)]
    best = max(every, key=lambda trial: trial.rank)
    assert best.holds and not all(trial.holds for trial in every)
    found = search(PROBLEM, GRID, REQUESTS)
    assert found.candidates == len(every) > 60
    assert found.best.holds and found.best.worth >= 0.97 * best.worth
    assert found.evaluations <= len(every) / 5


def trial(worth: float, why: str = "", goodput: float = 0.0, margin: float = 1.0) -> Trial:
    return Trial({"n": worth}, 1, worth, worth, goodput, why, margin, {})


def test_what_holds_goes_before_what_fails() -> None:
    ordered = [trial(2.0), trial(1.0, margin=3.0), trial(1.0), trial(9.0, "late", 0.5), trial(9.0, "late", 0.4)]
    assert sorted(reversed(ordered), key=lambda t: t.rank, reverse=True) == ordered


def test_halving_tries_many_on_few_and_few_on_all() -> None:
    plan = rungs(81, 10_000, eta=3, least=100, finalists=3)
    assert plan == [Rung(370, 27), Rung(1111, 9), Rung(3333, 3), Rung(10_000, 1)]
    assert rungs(200, 3200) == [Rung(50, 50), Rung(200, 13), Rung(800, 2), Rung(3200, 1)]
    tried: list[tuple[int, int]] = []

    def run(choices, requests):
        tried.append((len(choices), requests))
        return [dataclasses.replace(trial(choice["n"]), choice=choice, requests=requests) for choice in choices]

    last = list(halve([{"n": i} for i in range(81)], plan, run))[-1]
    assert last[0].choice == {"n": 80} and tried == [(81, 370), (27, 1111), (9, 3333), (3, 10_000)]
    assert rungs(2, 10_000) == [Rung(10_000, 1)] and rungs(50, 120) == [Rung(120, 1)]


def test_the_time_budget_is_kept_and_something_is_found() -> None:
    clock = iter(range(10_000))

    def run(choices, requests):
        return (dataclasses.replace(trial(c["n"]), choice=c, requests=requests) for c in choices)

    ranked = list(halve([{"n": i} for i in range(81)], rungs(81, 10_000), run, budget_s=20, now=lambda: next(clock)))
    assert [len(trials) for trials in ranked] == [6, 5, 5, 2]
    late = list(halve([{"n": i} for i in range(81)], rungs(81, 10_000), run, budget_s=1e-9, now=lambda: next(clock)))
    assert [len(trials) for trials in late] == [1, 1, 1, 1]


def test_compile_time_is_charged() -> None:
    """With a start every minute few programs win, with one a year many do."""
    quiet = dataclasses.replace(
        PROBLEM, workload=dataclasses.replace(PROBLEM.workload, arrivals="saturation", requests=150), bounds=(),
        objective="throughput",
    )  # fmt: skip
    choices = [
        {"buckets": name, "max_num_batched_tokens": 1024} for name in ("single", "powers4", "powers2", "fitted-8")
    ]

    def best(restart_s: float) -> Trial:
        problem = dataclasses.replace(quiet, restart_s=restart_s)
        return max((evaluate(problem, choice, 150) for choice in choices), key=lambda t: t.rank)

    often, seldom = best(20.0), best(3e7)
    assert often.choice["buckets"] == "single" and often.programs == 3
    assert seldom.programs > 3 and seldom.padding < often.padding
    assert math.isclose(often.worth, often.objective * (1 - 3 * 2.0 / 20.0))


def test_a_candidate_that_cannot_work_says_why() -> None:
    found = evaluate(PROBLEM, {"block_size": 33}, 10)
    assert not found.holds and "block_size = 33" in found.why
    found = evaluate(PROBLEM, {"max_num_seqs": 1}, REQUESTS)
    assert found.why.startswith("ttft_p99<0.6: was ") and found.margin < 1.0
    assert evaluate(PROBLEM, {"num_blocks": 1}, 10).why == "100.0% of the requests were refused or failed"


def test_replicas_are_charged_where_the_objective_is_cost() -> None:
    problem = dataclasses.replace(PROBLEM, objective="cost", bounds=Bound.parse_all("ttft_p99<20"))
    one, two = (evaluate(problem, {"replicas": n}, 300) for n in (1, 2))
    assert one.holds and two.holds and one.worth > 1.5 * two.worth


def test_the_space_holds_what_makes_sense() -> None:
    space = Space(
        {"policy": ("continuous/fcfs", "chunked/slack"), "max_num_batched_tokens": (64, 256), "chunk_size": (None, 64),
         "max_num_seqs": (64, 16)}
    )  # fmt: skip
    found = list(space.candidates(BASE))
    assert len(found) == 8 and {"policy": "chunked/slack", "max_num_batched_tokens": 256, "chunk_size": 64,
                                "max_num_seqs": 64} in found  # fmt: skip
    config = settings(BASE, found[-1])
    assert config.scheduler.policy == "chunked" and config.scheduler.ordering == "slack"
    assert {name for name, _ in space.neighbours(found[0])} <= set(space.choices)
    assert parse_choice("chunk_size=none,64") == ("chunk_size", (None, 64))
    assert parse_choice("watermark=0.05,true,x/y") == ("watermark", (0.05, True, "x/y"))


@pytest.mark.parametrize(
    "choices", [{"buckets": ("magic",)}, {"buckets": ("fitted-2",)}, {"replicas": (0,)}, {"a": ()}]
)
def test_a_space_that_cannot_work_is_refused(choices) -> None:
    with pytest.raises(ConfigError):
        Space(choices)


def test_every_set_serves_every_step() -> None:
    config = EngineConfig.from_settings(max_num_seqs=24, max_num_batched_tokens=100)
    for buckets in bucket_sets.plain_sets(config).values():
        table = BucketTable.from_config(buckets.config(4), config.scheduler)
        assert table.decode[-1] == 24 and table.prefill[-1] == 100 and len(table.all()) == buckets.programs
    assert bucket_sets.with_midpoints((1, 2, 4, 8)) == (1, 2, 3, 4, 6, 8)
    assert bucket_sets.linear(16) == (2, 4, 6, 8, 10, 12, 14, 16)
    assert bucket_sets.powers(32, 100) == (32, 64, 100) and bucket_sets.powers(32, 20) == (20,)


@pytest.mark.parametrize("rows", [8, 16])
def test_adaptive_steps_are_forecast_beside_full_slots(rows: int) -> None:
    """The forecast of a first token once asked for more decode rows than there are slots."""
    choice = {"policy": "adaptive/shortest", "max_num_seqs": rows, "max_num_batched_tokens": 256}
    assert evaluate(PROBLEM, choice, 300).programs > 0
