"""What an engine looked like over the time of a run, in a fixed number of bins, however long the run is.

bins     |  0  |  1  |  2  | ...                     samples are weighted with the time that they held
a step   .   <---------->                            goes into each bin by its share, its tokens too
too long |     0     |     1     | ...               neighbours are merged, and bins are twice as wide
"""

import math
from typing import Any

BINS = 512
_FIRST_WIDTH_S = 1 / 16


class Gauges:
    """Sums over time of what ran, what waited and how full the pool was; of all replicas together."""

    def __init__(self) -> None:
        self.width_s = _FIRST_WIDTH_S
        self._bins: list[list[float]] = []  # seconds observed, running, waiting, KV usage (x seconds), tokens, steps
        self.max_running = 0
        self.max_waiting = 0
        self.max_kv_usage = 0.0

    def sample(self, at_s: float, held_s: float, running: int, waiting: int, kv_usage: float, tokens: int) -> None:
        """At the end of a step, `held_s` after the one before: what it left, and the output tokens it brought."""
        while (index := max(math.ceil(at_s / self.width_s) - 1, 0)) >= BINS:
            self._merge()
        bins = self._bins
        while index >= len(bins):
            bins.append([0.0] * 6)
        first = min(int((at_s - held_s) / self.width_s), index)
        for place in range(first, index + 1):
            share = 1.0
            if first < index:
                begin_s, end_s = max(at_s - held_s, place * self.width_s), min(at_s, (place + 1) * self.width_s)
                share = (end_s - begin_s) / held_s
            entry = bins[place]
            entry[0] += share * held_s
            entry[1] += share * held_s * running
            entry[2] += share * held_s * waiting
            entry[3] += share * held_s * kv_usage
            entry[4] += share * tokens
            entry[5] += share
        if running > self.max_running:
            self.max_running = running
        if waiting > self.max_waiting:
            self.max_waiting = waiting
        if kv_usage > self.max_kv_usage:
            self.max_kv_usage = kv_usage

    @property
    def kv_usage(self) -> float:
        """Mean share of the KV blocks in use, over the time in which there was work."""
        seconds = sum(entry[0] for entry in self._bins)
        return sum(entry[3] for entry in self._bins) / seconds if seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """Series with one value a bin; a bin in which nothing ran has zeros."""

        def mean(index: int) -> list[float]:
            return [round(entry[index] / entry[0], 4) if entry[0] else 0.0 for entry in self._bins]

        return {
            "width_s": self.width_s,
            "running": mean(1),
            "waiting": mean(2),
            "kv_usage": mean(3),
            "tokens_per_s": [round(entry[4] / self.width_s, 2) for entry in self._bins],
            "steps_per_s": [round(entry[5] / self.width_s, 2) for entry in self._bins],
        }

    def _merge(self) -> None:
        self.width_s *= 2
        old = self._bins if len(self._bins) % 2 == 0 else [*self._bins, [0.0] * 6]
        self._bins = [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(old[::2], old[1::2], strict=True)]
