"""Halving and its price; bucket sets are charged; failures say why. What it finds: tests/bench/test_tuning.py."""

import dataclasses
import math
import random

import pytest

from bench.tuning import BASE, PROBLEMS
from jaxserve.core.buckets import BucketTable
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError
from jaxserve.metrics.slo import Bound
from jaxserve.tune import bucket_sets
from jaxserve.tune.halving import Rung, halve, layered, rungs
from jaxserve.tune.search import RESERVES, search
from jaxserve.tune.space import Choice, Space, parse_choice, settings
from jaxserve.tune.trial import FIT_REQUESTS, Evaluated, Problem, Trial, evaluate, evaluated

PROBLEM = PROBLEMS["goodput"].problem
REQUESTS = 800


def trial(worth: float, why: str = "", goodput: float = 0.0, margin: float = 1.0) -> Trial:
    return Trial({"n": worth}, 1, worth, worth, goodput, why, margin, {})


def test_what_holds_goes_before_what_fails() -> None:
    ordered = [trial(2.0), trial(1.0, margin=3.0), trial(1.0), trial(9.0, "late", 0.5), trial(9.0, "late", 0.4)]
    assert sorted(reversed(ordered), key=lambda t: t.rank, reverse=True) == ordered


def test_halving_tries_many_on_few_and_few_on_all() -> None:
    plan = rungs(81, 10_000, eta=3, keep=3, least=100, finalists=3)
    assert plan == [Rung(370, 27), Rung(1111, 9), Rung(3333, 3), Rung(10_000, 1)]
    assert rungs(200, 3200) == [Rung(50, 40), Rung(200, 8), Rung(800, 2), Rung(3200, 1)]
    tried: list[tuple[int, int]] = []

    def run(choices, requests):
        tried.append((len(choices), requests))
        return [dataclasses.replace(trial(choice["n"]), choice=choice, requests=requests) for choice in choices]

    last = list(halve([{"n": i} for i in range(81)], plan, run))[-1]
    assert last[0].choice == {"n": 80} and tried == [(81, 370), (27, 1111), (9, 3333), (3, 10_000)]
    assert rungs(2, 10_000) == [Rung(10_000, 1)] and rungs(50, 120) == [Rung(120, 1)]


def test_who_goes_on_is_beaten_by_nobody_in_both() -> None:
    """The picture of `layered`, and a brute-force check: deeper layers are beaten by someone of the layer above."""
    rng = random.Random(3)
    assert [t.worth for t in layered([trial(1.0, margin=3.0), trial(3.0), trial(2.0)])] == [3.0, 1.0, 2.0]
    for _ in range(200):
        some = [
            trial(rng.randint(1, 5), rng.choice(["", "", "late"]), rng.random(), rng.randint(1, 5) / 2)
            for _ in range(12)
        ]
        left, expected = list(some), []
        while left:
            front = [a for a in left if not any(beats(b, a) for b in left)]
            expected += sorted(front, key=lambda t: t.rank, reverse=True)
            left = [a for a in left if a not in front]
        assert [t.rank for t in layered(some)] == [t.rank for t in expected]


def beats(a: Trial, b: Trial) -> bool:
    return a.rank > b.rank and a.margin >= b.margin


def drowning(problem: Problem, choice: Choice, requests: int) -> Evaluated:
    """Few engines are worth most and look well at first; from the third on a queue no longer grows."""
    engines = choice["replicas"]
    margin = 1.0 + 0.1 * engines if requests < REQUESTS or engines > 2 else 0.3
    found = trial(10.0 / engines + 0.01 * choice["max_num_seqs"], "" if margin >= 1.0 else "late", 0.5, margin)
    return Evaluated(dataclasses.replace(found, choice=choice, requests=requests), requests)


def test_what_a_part_of_the_requests_hides_is_found_out() -> None:
    """No finalist holds; others that seemed further from the bounds are tried until the line is found."""
    space = Space({"replicas": (1, 2, 3, 4, 5), "max_num_seqs": (1, 2, 3, 4)})
    for seed in range(5):
        found = search(PROBLEM, space, REQUESTS, seed=seed, evaluate=drowning)
        assert found.best.holds and found.best.choice["replicas"] == 3
        full = [t for t in found.trials if t.requests == REQUESTS]
        assert len(full) <= 2 + RESERVES + 2
    nothing = search(PROBLEM, Space({"replicas": (1, 2), "max_num_seqs": (1, 2, 3, 4)}), REQUESTS, evaluate=drowning)
    assert not nothing.best.holds and len([t for t in nothing.trials if t.requests == REQUESTS]) <= 2 + RESERVES + 2


def test_the_time_budget_is_kept_and_something_is_found() -> None:
    clock = iter(range(10_000))

    def run(choices, requests):
        return (dataclasses.replace(trial(c["n"]), choice=c, requests=requests) for c in choices)

    ranked = list(halve([{"n": i} for i in range(81)], rungs(81, 10_000), run, budget_s=20, now=lambda: next(clock)))
    assert [len(trials) for trials in ranked] == [6, 5, 4, 2]
    late = list(halve([{"n": i} for i in range(81)], rungs(81, 10_000), run, budget_s=1e-9, now=lambda: next(clock)))
    assert [len(trials) for trials in late] == [1, 1, 1, 1]


def test_a_search_says_whether_its_time_was_up() -> None:
    space = Space({"replicas": (1, 2, 3, 4, 5), "max_num_seqs": (1, 2, 3, 4)})

    def cut_short(budget_s: float) -> bool:
        clock = iter(range(10_000))
        found = search(PROBLEM, space, REQUESTS, evaluate=drowning, budget_s=budget_s, now=lambda: next(clock))
        assert found.best.choice
        return found.cut_short

    found = [cut_short(budget_s) for budget_s in (1e-9, 20, 40, 60, 1e9)]
    assert found == sorted(found, reverse=True) and found[0] and not found[-1]
    assert search(PROBLEM, space, REQUESTS, evaluate=drowning).cut_short is False


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
    found = evaluate(PROBLEM, {"max_num_seqs": 1}, 100)
    assert found.why.startswith("ttft_p99<0.6: was ") and found.margin < 1.0
    assert evaluate(PROBLEM, {"num_blocks": 1}, 10).why == "100.0% of the requests were refused or failed"


def test_replicas_are_charged_where_the_objective_is_cost() -> None:
    problem = dataclasses.replace(PROBLEM, objective="cost", bounds=Bound.parse_all("ttft_p99<20"))
    one, two = (evaluate(problem, {"replicas": n}, 300) for n in (1, 2))
    assert one.holds and two.holds and one.worth > 1.5 * two.worth


def test_the_price_counts_parts_and_what_buckets_are_fitted_to() -> None:
    problem = dataclasses.replace(PROBLEM, workload=dataclasses.replace(PROBLEM.workload, seed=77))
    sizes = [evaluated(problem, {"buckets": name}, 100).simulated for name in ("fitted-8", "fitted-9", "powers2")]
    sizes.append(evaluated(problem, {"buckets": "fitted-8"}, REQUESTS).simulated)
    assert sizes == [100 + 100, 100, 100, REQUESTS + FIT_REQUESTS]  # sets of one configuration are fitted to one run
    assert evaluated(problem, {"buckets": "powers2"}, 10_000).simulated == REQUESTS
    calls: list[int] = []

    def made_up(problem: Problem, choice: Choice, requests: int) -> Evaluated:
        calls.append(requests)
        return Evaluated(dataclasses.replace(trial(1.0), choice=choice, requests=requests), requests)

    space = Space({"max_num_seqs": (4, 8, 16), "max_num_batched_tokens": (256, 512, 1024)})
    found = search(problem, space, REQUESTS, evaluate=made_up)
    assert found.evaluations == sum(calls) / REQUESTS and set(calls) == {200, 800} and calls.count(800) >= 2
    places = {repr(search(problem, space, REQUESTS, seed=s, evaluate=made_up).best.choice) for s in range(6)}
    assert len(places) > 1  # between equals the seed decides


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
    "choices",
    [
        {"buckets": ("magic",)},
        {"buckets": ("fitted-2",)},
        {"replicas": (0,)},
        {"a": ()},
        {"chunk_size": (64, "1x")},
        {"max_num_seqs": (None,)},
    ],
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
