"""The search: halving over the space, then every choice of the winner tried the other way.

The second part is what each choice is worth, and a step uphill: a neighbour that does better on a part of the requests
is tried on all of them, and takes over if it does better there too.
"""

import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

from jaxserve.core.errors import ConfigError
from jaxserve.tune.halving import Evaluate, halve, rungs
from jaxserve.tune.space import Choice, Space
from jaxserve.tune.trial import Problem, Trial, evaluate

Told = Callable[[Trial], None]
HALVING_SHARE = 0.75
"""Of the time; the rest is for the neighbours."""


@dataclass
class Worth:
    """What a choice is worth: the winner with another value of it, on the same requests."""

    name: str
    chosen: Any
    other: Any
    trial: Trial
    share: float
    """Worth of the other over the winner's, less 1; nan if the winner is worth nothing."""


@dataclass
class Found:
    """`trials`: of every candidate the one on most requests; those on more first, then the better ones."""

    best: Trial
    trials: list[Trial]
    worths: list[Worth] = field(default_factory=list[Worth])
    candidates: int = 0
    simulated_requests: int = 0
    requests: int = 0

    @property
    def evaluations(self) -> float:
        """Runs of the whole workload that all the trials together come to."""
        return self.simulated_requests / self.requests


def search(
    problem: Problem,
    space: Space,
    requests: int,
    *,
    most: int | None = None,
    jobs: int = 1,
    budget_s: float = float("inf"),
    seed: int = 0,
    told: Told = lambda trial: None,
    now: Callable[[], float] = time.monotonic,
) -> Found:
    """`most`: candidates that are drawn from a larger space. `told` of every trial as it ends.

    Raises:
      ConfigError: no candidate makes sense.
    """
    begin = now()
    candidates = space.sample(problem.base, most, random.Random(seed))
    if not candidates:
        raise ConfigError("choose: no combination can work: a budget must be more than max_num_seqs and than the chunk")
    plan = rungs(len(candidates), requests)
    last: dict[str, Trial] = {}
    count = 0

    with _evaluator(problem, jobs) as run:

        def watched(choices: Sequence[Choice], part: int) -> Iterator[Trial]:
            nonlocal count
            for trial in run(choices, part):
                count += part
                key = repr(trial.choice)
                if key not in last or trial.requests >= last[key].requests:
                    last[key] = trial
                told(trial)
                yield trial

        ranked = list(halve(candidates, plan, watched, budget_s=HALVING_SHARE * budget_s, now=now))
        best = ranked[-1][0]
        part = plan[-2].requests if len(plan) > 1 else requests
        best, worths = _neighbours(space, best, part, requests, watched, lambda: now() - begin > budget_s)
    trials = sorted(last.values(), key=lambda t: (t.requests, t.rank), reverse=True)
    return Found(best, trials, worths, len(candidates), count, requests)


def expected_trials(candidates: int, requests: int) -> int:
    """For a progress bar: of the halving, without the neighbours."""
    total, left = 0, candidates
    for rung in rungs(candidates, requests):
        total, left = total + left, rung.keep
    return total


def _neighbours(
    space: Space, best: Trial, part: int, requests: int, run: Evaluate, late: Callable[[], bool]
) -> tuple[Trial, list[Worth]]:
    """The best of the winner and its neighbours, and the neighbours beside the first winner."""
    others = list(space.neighbours(best.choice))
    if not others or late():
        return best, []
    reference = best if part == requests else next(iter(run([best.choice], part)))
    found: dict[str, Trial] = {}
    for trial in run([choice for _, choice in others], part):
        found[repr(trial.choice)] = trial
        if late():
            break
    tried = [(name, found[repr(choice)]) for name, choice in others if repr(choice) in found]
    worths = [
        Worth(
            name,
            best.choice[name],
            t.choice[name],
            t,
            t.worth / reference.worth - 1 if reference.worth else float("nan"),
        )
        for name, t in tried
    ]
    better = sorted((t for _, t in tried if t.rank > reference.rank), key=lambda t: t.rank, reverse=True)[:1]
    if part < requests and better and not late():
        better = list(run([t.choice for t in better], requests))
    return max([best, *(t for t in better if t.requests == requests)], key=lambda t: t.rank), worths


@contextmanager
def _evaluator(problem: Problem, jobs: int) -> Generator[Evaluate]:
    """In this process, or in `jobs` of them."""
    if jobs <= 1:
        yield lambda choices, requests: (evaluate(problem, choice, requests) for choice in choices)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:

        def parallel(choices: Sequence[Choice], requests: int) -> Iterable[Trial]:
            futures = [pool.submit(evaluate, problem, choice, requests) for choice in choices]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                for future in futures:
                    future.cancel()

        yield parallel
