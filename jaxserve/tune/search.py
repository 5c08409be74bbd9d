"""The search: halving over the space, then every choice of the winner tried the other way.

Where a finalist does not hold on all requests, others are tried on them: those that a part of the requests showed
further from the bounds. The second part of the search is what each choice is worth, and a step uphill: a neighbour that
does better on a part of the requests is tried on all of them, and takes over if it does better there too.
"""

import random
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

from jaxserve.core.errors import ConfigError
from jaxserve.tune.halving import Evaluate, Rung, halve, rungs
from jaxserve.tune.space import Choice, Space
from jaxserve.tune.trial import Evaluated, Problem, Trial, evaluated

Told = Callable[[Trial], None]
Evaluator = Callable[[Problem, Choice, int], Evaluated]
Run = Callable[[Sequence[Choice], int], Iterable[Evaluated]]
RESERVES = 2
"""Most that are tried after finalists that do not hold; one more while nobody does."""
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
    cut_short: bool = False
    """The time was up before everything had been tried that would have been."""

    @property
    def evaluations(self) -> float:
        """Runs of the whole workload that everything simulated comes to: a trial on a quarter of it is a quarter."""
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
    evaluate: Evaluator = evaluated,
    now: Callable[[], float] = time.monotonic,
) -> Found:
    """`most`: candidates that are drawn from a larger space. `told` of every trial as it ends. `seed`: which are drawn,
    and who goes first between equals.

    Raises:
      ConfigError: no candidate makes sense.
    """
    begin = now()
    candidates = space.sample(problem.base, most, random.Random(seed))
    if not candidates:
        raise ConfigError("choose: no combination can work: a budget must be more than max_num_seqs and than the chunk")
    plan = rungs(len(candidates), requests)
    last: dict[str, Trial] = {}
    known: dict[tuple[str, int], Trial] = {}
    count = 0

    with _running(problem, jobs, evaluate) as run:

        def watched(choices: Sequence[Choice], part: int) -> Iterator[Trial]:
            nonlocal count
            yield from (known[key] for choice in choices if (key := (repr(choice), part)) in known)
            for trial, simulated in run([choice for choice in choices if (repr(choice), part) not in known], part):
                count += simulated
                key = repr(trial.choice)
                known[key, part] = trial
                if key not in last or trial.requests >= last[key].requests:
                    last[key] = trial
                told(trial)
                yield trial

        ranked = list(halve(candidates, plan, watched, budget_s=HALVING_SHARE * budget_s, now=now))
        best, part, failed = ranked[-1][0], requests, 0.0
        if len(plan) > 1:
            part = plan[-2].requests
            tried = _reserves(ranked[-1], ranked[-2], watched, lambda: now() - begin > HALVING_SHARE * budget_s)
            best = max(tried, key=lambda trial: trial.rank)
            failed = _failed(tried, {repr(trial.choice): trial for trial in ranked[-2]})
        neighbours = sum(1 for _ in space.neighbours(best.choice))
        best, worths = _neighbours(space, best, part, requests, failed, watched, lambda: now() - begin > budget_s)
    trials = sorted(last.values(), key=lambda t: (t.requests, t.rank), reverse=True)
    cut_short = _cut_short(len(candidates), plan, ranked) or len(worths) < neighbours
    return Found(best, trials, worths, len(candidates), count, requests, cut_short)


def expected_trials(candidates: int, requests: int) -> int:
    """For a progress bar: of the halving, without the neighbours."""
    total, left = 0, candidates
    for rung in rungs(candidates, requests):
        total, left = total + left, rung.keep
    return total


def _cut_short(candidates: int, plan: Sequence[Rung], ranked: Sequence[list[Trial]]) -> bool:
    """Whether a rung's time ended before all who had come to it were tried."""
    due = candidates
    for rung, trials in zip(plan, ranked, strict=True):
        if len(trials) < due:
            return True
        due = min(rung.keep, len(trials))
    return False


def _reserves(finals: list[Trial], before: list[Trial], run: Evaluate, late: Callable[[], bool]) -> list[Trial]:
    """Those on all requests. `finals`: the finalists there; `before`: they and others on a part.

    Where a finalist did not hold, the line between who does and who does not is searched by halves, along the front of
    those that hold on the part and are worth most for their margin there:

        worth    fails  ?  ?  ?  ?  holds     margin        a trial in the middle leaves half of the doubts
    """
    tried = list(finals)
    parts = {repr(trial.choice): trial for trial in before}
    while len(tried) < len(finals) + RESERVES + (not any(trial.holds for trial in tried)) and not late():
        failed = _failed(tried, parts)
        held = max((parts[repr(trial.choice)].rank for trial in tried if trial.holds), default=None)
        front: list[Trial] = []
        for trial in sorted(before, key=lambda t: t.rank, reverse=True):
            further = trial.margin > (front[-1].margin if front else failed)
            if trial.holds and further and (held is None or trial.rank > held):
                front.append(trial)
        if not failed or not front:
            break
        tried += run([front[len(front) // 2].choice], finals[0].requests)
    return tried


def _failed(tried: Iterable[Trial], parts: Mapping[str, Trial]) -> float:
    """The largest margin on the part of those that do not hold on all requests: less promises nothing. 0: all hold."""
    return max((parts[key].margin for trial in tried if not trial.holds and (key := repr(trial.choice)) in parts),
               default=0.0)  # fmt: skip


def _neighbours(
    space: Space, best: Trial, part: int, requests: int, failed: float, run: Evaluate, late: Callable[[], bool]
) -> tuple[Trial, list[Worth]]:
    """The best of the winner and its neighbours, and the neighbours beside the first winner.

    `failed`: a margin on the part that has not held on all requests; a neighbour with no more is not tried on them.
    """
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
    better = [t for _, t in tried if t.rank > reference.rank and (t.margin > failed or part == requests)]
    better = sorted(better, key=lambda t: t.rank, reverse=True)[:1]
    if part < requests and better and not late():
        better = list(run([t.choice for t in better], requests))
    return max([best, *(t for t in better if t.requests == requests)], key=lambda t: t.rank), worths


@contextmanager
def _running(problem: Problem, jobs: int, evaluate: Evaluator) -> Generator[Run]:
    """In this process, or in `jobs` of them."""
    if jobs <= 1:
        yield lambda choices, requests: (evaluate(problem, choice, requests) for choice in choices)
        return
    # a terminal's Ctrl-C goes to all of its processes: what it means is for this one to say
    with ProcessPoolExecutor(
        jobs, get_context("spawn"), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    ) as pool:

        def parallel(choices: Sequence[Choice], requests: int) -> Iterable[Evaluated]:
            futures = [pool.submit(evaluate, problem, choice, requests) for choice in choices]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                for future in futures:
                    future.cancel()

        yield parallel
