"""Is the search of `jaxserve tune` any good? Grids that can be enumerated: the best of all against what it finds.

    python -m bench.tuning                                three problems, five draws of the requests each
    python -m bench.tuning --problems replicas --seeds 7

goodput     good requests a second, at a load that a third of the configurations carries
throughput  output tokens a second, all requests at once, the gaps between tokens bounded
replicas    output tokens a second and replica: few engines do until the queue grows, and a trace's beginning hides that

A row is a problem and a draw of its requests; it is searched once a search seed, since that decides between equals.
`near`: the share of all configurations within 3% of the best, which is what picking blindly would find.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench.shared import results_file
from bench.shared.flags import words
from jaxserve.commands.results import expect_file
from jaxserve.commands.settings_flags import whole_numbers
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError, JaxserveError
from jaxserve.core.progress import progress_bar
from jaxserve.core.settings import require
from jaxserve.costs.model import FormulaCost
from jaxserve.metrics.slo import Bound
from jaxserve.sim.workload import Workload
from jaxserve.tune.search import Found, search
from jaxserve.tune.space import Choice, Space
from jaxserve.tune.trial import Evaluated, Problem, Trial, evaluated

COST = FormulaCost(
    source="made up", overhead_s=0.002, weights_s=0.004, token_s=4e-5, pair_s=2e-9, context_s=4e-8, row_s=1e-5,
    padded=True,
)  # fmt: skip
BASE = EngineConfig.from_settings(
    num_blocks=4000, block_size=16, enable_prefix_caching=False, max_waiting=100_000, max_num_seqs=64
)
WORKLOAD = Workload(
    arrivals="gamma:20,2", prompt_tokens="lognormal:5.5,1,16,2000", output_tokens="lognormal:2.7,0.7,2,100",
    requests=800,
)  # fmt: skip
GRID = Space(
    {
        "policy": ("chunked/fcfs", "chunked/shortest", "continuous/fcfs"),
        "max_num_batched_tokens": (128, 512, 2048),
        "max_num_seqs": (8, 32, 64),
        "buckets": ("single", "powers4", "powers2"),
    }
)
NEAR, PRICE = 0.97, 0.2
"""What the search promises: so much of the best, for so much of the price of trying all."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """A problem and a space that can be enumerated; the workload's seed is the caller's."""

    problem: Problem
    space: Space

    def drawn(self, seed: int) -> Problem:
        return dataclasses.replace(self.problem, workload=dataclasses.replace(self.problem.workload, seed=seed))


PROBLEMS = {
    "goodput": Grid(Problem(BASE, WORKLOAD, COST, Bound.parse_all("ttft_p99<0.6,tpot_p99<0.03")), GRID),
    "throughput": Grid(
        Problem(BASE, dataclasses.replace(WORKLOAD, arrivals="saturation"), COST, Bound.parse_all("tpot_p99<0.04"),
                "throughput"),
        GRID,
    ),
    "replicas": Grid(
        Problem(BASE, dataclasses.replace(WORKLOAD, arrivals="gamma:50,2"), COST,
                Bound.parse_all("ttft_p99<0.6,tpot_p99<0.03"), "cost"),
        Space(
            {
                "policy": ("chunked/fcfs", "chunked/shortest"),
                "max_num_batched_tokens": (256, 1024),
                "max_num_seqs": (16, 64),
                "buckets": ("single", "powers4", "powers2"),
                "replicas": (1, 2, 3),
            }
        ),
    ),
}  # fmt: skip
COLUMNS = (
    ("problem", "problem"), ("draw", "seed"), ("configurations", "configurations"), ("hold %", "hold"),
    ("near %", "near"), ("found, of the best %", "found"), ("worst search %", "worst"), ("price, of all %", "price"),
)  # fmt: skip


class Remembered:
    """Trials of one problem, each made once: searches of other seeds ask for the same ones."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], Evaluated] = {}

    def __call__(self, problem: Problem, choice: Choice, requests: int) -> Evaluated:
        key = repr(choice), requests
        if key not in self._known:
            self._known[key] = evaluated(problem, choice, requests)
        return self._known[key]


def judge(grid: Grid, seed: int, searches: int = 5) -> results_file.Row:
    """Enumerate a draw, search it with so many search seeds, and say what the searches found of the best."""
    problem, trials = grid.drawn(seed), Remembered()
    requests = problem.workload.requests or 0
    every = [trials(problem, choice, requests).trial for choice in grid.space.candidates(problem.base)]
    best = max(every, key=lambda trial: trial.rank)
    found = [search(problem, grid.space, requests, seed=s, evaluate=trials) for s in range(searches)]
    shares = sorted(_share(f, best) for f in found)
    return {
        "seed": seed,
        "configurations": len(every),
        "hold": sum(trial.holds for trial in every) / len(every),
        "near": sum(trial.holds and trial.worth >= NEAR * best.worth for trial in every) / len(every),
        "found": shares[len(shares) // 2],
        "worst": shares[0],
        "price": max(f.evaluations for f in found) / len(every),
        "best": best.choice,
    }


def _share(found: Found, best: Trial) -> float:
    """0: what was found does not hold."""
    return found.best.worth / best.worth if found.best.holds and best.holds else 0.0


def _judged(draws: Sequence[tuple[str, int, int]], jobs: int) -> Iterator[results_file.Row]:
    """A row for each draw, in order, made in as many processes."""
    with (
        progress_bar(len(draws), "tuning", "draws", show=sys.stderr.isatty()) as bar,
        ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) if jobs > 1 else nullcontext() as pool,
    ):
        for row in pool.map(_judge, draws) if pool else map(_judge, draws):
            yield row
            bar.update()


def _judge(draw: tuple[str, int, int]) -> results_file.Row:
    name, seed, searches = draw
    return {"name": f"{name} {seed}", "problem": name} | judge(PROBLEMS[name], seed, searches)


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    try:
        require(given.searches > 0, "searches", given.searches, "1 or more")
        require(given.jobs > 0, "jobs", given.jobs, "1 or more")
        for name in given.problems:
            if name not in PROBLEMS:
                raise ConfigError(f"problems = {name!r}: known: {', '.join(PROBLEMS)}")
        expect_file(given.json)
        rows = list(
            _judged([(name, seed, given.searches) for name in given.problems for seed in given.seeds], given.jobs)
        )
        result: dict[str, Any] = results_file.record("tuning", given, rows, seeds=given.seeds, cost_model=COST.source)
        print(results_file.show(result, COLUMNS))
        kept = sum(row["worst"] >= NEAR and row["price"] <= PRICE for row in rows)
        print(f"\nevery search within 3% for a fifth of the price: in {kept} of {len(rows)} draws")
        if given.json:
            results_file.write(given.json, result)
    except JaxserveError as error:
        print(f"bench.tuning: {error}", file=sys.stderr)
        return 2
    return 0 if kept == len(rows) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.tuning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", type=words, default=list(PROBLEMS), metavar="NAME,..", help="all of them")
    parser.add_argument("--seeds", type=whole_numbers, default=(0, 1, 2, 3, 4), metavar="S,S", help="draws (0 to 4)")
    parser.add_argument("--searches", type=int, default=5, metavar="N", help="search seeds a draw (5)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row")
    return parser


if __name__ == "__main__":
    sys.exit(main())
