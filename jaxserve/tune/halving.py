"""Successive halving: all candidates on the first few requests, the better ones on more, the best on all.

    requests     | 1/64 |  1/16   |       1/4        |                     1                      |
    candidates     N        N / 5       N / 25           two finalists

(Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", 2016.) The first
requests of a trace are its quiet start, in which hardly anything waits. So the first part is never less than `least`,
and who goes on is not who is worth most so far: one engine that will drown looks better than two that will not. It is
who no other beats in both, what it is worth and how far it is from its bounds; then who only those beat; and so on
(the layers of Srinivas and Deb, "Multiobjective optimization using nondominated sorting", 1994).
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


def rungs(
    candidates: int, requests: int, eta: int = 4, keep: int = 5, least: int = 50, finalists: int = 2
) -> list[Rung]:
    """Each rung has `eta` times the requests of the one before, and keeps one candidate of `keep`."""
    parts = [requests]
    while len(parts) < 4 and parts[0] // eta >= least and candidates > finalists * keep ** (len(parts) - 1):
        parts.insert(0, parts[0] // eta)
    found: list[Rung] = []
    kept = candidates
    for part in parts[:-1]:
        last = part == parts[-2]
        kept = min(finalists, kept) if last else max(-(-kept // keep), finalists)
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
    places = {repr(choice): place for place, choice in enumerate(candidates)}
    for number, rung in enumerate(plan, 1):
        trials: list[Trial] = []
        for trial in evaluate(candidates, rung.requests):
            trials.append(trial)
            if now() - begin > budget_s * number / len(plan):
                break
        trials.sort(key=lambda trial: places[repr(trial.choice)])  # between equals not the faster process decides
        trials.sort(key=lambda trial: trial.rank, reverse=True)
        yield trials
        candidates = [trial.choice for trial in layered(trials)[: rung.keep]]


def layered(trials: Iterable[Trial]) -> list[Trial]:
    """By layers, and within one by rank; equals stay in order.

    margin |  1   1
           |    2   1        a trial's layer is one more than the deepest of those that beat it
           |  3   2  1
           +---------- worth
    """
    ordered = sorted(trials, key=lambda trial: trial.rank, reverse=True)
    best: list[float] = []  # the largest margin of each layer so far; they fall from layer to layer
    layers: list[int] = []
    for place, trial in enumerate(ordered):
        equal = place and trial.rank == ordered[place - 1].rank
        layer = layers[-1] if equal else sum(margin >= trial.margin for margin in best)
        if layer == len(best):
            best.append(trial.margin)
        best[layer] = max(best[layer], trial.margin)
        layers.append(layer)
    return [trial for _, trial in sorted(zip(layers, ordered, strict=True), key=lambda pair: pair[0])]
