"""Counters and histograms in plain Python: one thread counts, another may read at any time.

`prometheus_client`'s own take a lock and a linear search for every observation; a step of 64 decodes makes 64 of them
(`python -m bench.metrics_cost` times both). Here equal observations are made at once, and a scrape
pays for the formatting.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence

Labels = tuple[str, ...]
"""Label values, in the order of the metric's label names."""


class Histogram:
    """How many observations fell at or below each bound."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    @property
    def count(self) -> int:
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, int]]:
        """(upper bound, observations up to it), ending with +Inf, as Prometheus writes them."""
        found: list[tuple[str, int]] = []
        running = 0
        for bound, count in zip((*map(_number, self.bounds), "+Inf"), tuple(self.counts), strict=True):
            running += count
            found.append((bound, running))
        return found


class Counts:
    """All counters and histograms of one writer, by metric name and label values."""

    def __init__(self, bounds: dict[str, Sequence[float]]) -> None:
        self._bounds = bounds
        self.counters: defaultdict[str, dict[Labels, float]] = defaultdict(dict)
        self.histograms: defaultdict[str, dict[Labels, Histogram]] = defaultdict(dict)

    def add(self, name: str, amount: float = 1, labels: Labels = ()) -> None:
        series = self.counters[name]
        series[labels] = series.get(labels, 0) + amount

    def observe(self, name: str, value: float, times: int = 1, labels: Labels = ()) -> None:
        self.histogram(name, labels).observe(value, times)

    def histogram(self, name: str, labels: Labels = ()) -> Histogram:
        series = self.histograms[name]
        found = series.get(labels)
        if found is None:
            found = series[labels] = Histogram(self._bounds[name])
        return found


def _number(value: float) -> str:
    return repr(float(value))
