"""Figures of a run, from what became of each request. Times in seconds; definitions as in the field.

TTFT      first token emitted - arrival, queueing included
TPOT      (last token - first) / (output tokens - 1), of one request
TBT       every gap between two consecutive tokens of one request
goodput   share of all offered requests, refused ones included, that met every objective
"""

import statistics
from collections.abc import Callable, Iterable, Sequence

from jaxserve.metrics.distribution import percentile
from jaxserve.sim.drive import Served


def done(run: Iterable[Served]) -> list[Served]:
    """Those that were served to the end."""
    return [s for s in run if s.token_s and not s.refused and not s.failed]


def ttft(run: Iterable[Served], percent: float) -> float:
    return percentile([s.ttft_s for s in done(run)], percent)


def tpot(run: Iterable[Served], percent: float) -> float:
    return percentile([s.tpot_s for s in done(run) if len(s.token_s) > 1], percent)


def gaps(run: Iterable[Served]) -> list[float]:
    return [b - a for s in done(run) for a, b in zip(s.token_s, s.token_s[1:], strict=False)]


def goodput(run: Sequence[Served], ttft_slo_s: float, tpot_slo_s: float) -> float:
    return sum(s.ttft_s <= ttft_slo_s and s.tpot_s <= tpot_slo_s for s in done(run)) / len(run)


def jain(shares: Sequence[float]) -> float:
    """1: all equal; 1 / n: one has everything."""
    total = sum(shares)
    return total * total / (len(shares) * sum(x * x for x in shares)) if total else 1.0


def only(run: Iterable[Served], keep: Callable[[Served], bool]) -> list[Served]:
    return [s for s in run if keep(s)]


def median(values: Iterable[float]) -> float:
    return statistics.median(values)
