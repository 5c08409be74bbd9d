"""Successive halving: all candidates on the first few requests, the better ones on more, the best on all.

    requests     | 1/64 |  1/16   |       1/4        |                     1                      |
    candidates     N        N / 4       N / 16           two finalists

(Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", 2016.) The first
requests of a trace are its quiet start, in which hardly anything waits; so the first part is never less than `least`.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from jaxserve.tune.space import Choice
from jaxserve.tune.trial import Trial

Evaluate = Callable[[Sequence[Choice], int], Iterable[Trial]]
"""(candidates, requests) -> trials as they end; leaving the loop early drops the rest."""


@dataclass(frozen=True, slots=True)
class Rung:
    requests: int
    keep: int
    """How many go on to the next rung."""


def rungs(candidates: int, requests: int, eta: int = 4, least: int = 50, finalists: int = 2) -> list[Rung]:
    """Each rung has `eta` times the requests of the one before and keeps one candidate of `eta`."""
    parts = [requests]
    while len(parts) < 4 and parts[0] // eta >= least and candidates > finalists * eta ** (len(parts) - 1):
        parts.insert(0, parts[0] // eta)
    found: list[Rung] = []
    kept = candidates
    for part in parts[:-1]:
        last = part == parts[-2]
        kept = min(finalists, kept) if last else max(-(-kept // eta), finalists)
        found.append(Rung(part, kept))
    return [*found, Rung(requests, 1)]


def halve(
    candidates: Sequence[Choice],
    plan: Sequence[Rung],
    evaluate: Evaluate,
    *,
    budget_s: float = float("inf"),
    now: Callable[[], float] = time.monotonic,
) -> Iterator[list[Trial]]:
    """The trials of each rung, best first. Each rung has its share of the time; who was not tried in it is out."""
    begin = now()
    for number, rung in enumerate(plan, 1):
        trials: list[Trial] = []
        for trial in evaluate(candidates, rung.requests):
            trials.append(trial)
            if now() - begin > budget_s * number / len(plan):
                break
        trials.sort(key=lambda trial: trial.rank, reverse=True)
        yield trials
        candidates = [trial.choice for trial in trials[: rung.keep]]
