"""How often something happened in each of the last seconds, by name: refusals by tenant and reason, for one.

Counters tell how often since the start; this tells how often lately, and it is bounded.
"""

from collections import deque

from jaxserve.metrics.counts import Labels

SECONDS = 300
"""Seconds that are kept; those in which nothing happened are not among them."""


class BySecond:
    """One writer."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, dict[Labels, int]]] = deque(maxlen=SECONDS)

    def add(self, labels: Labels, now: float) -> None:
        at_s = int(now)
        if not self._seconds or self._seconds[-1][0] != at_s:
            self._seconds.append((at_s, {}))
        counts = self._seconds[-1][1]
        counts[labels] = counts.get(labels, 0) + 1

    def at(self, second_s: int) -> int:
        """How often it happened in one second, all names together."""
        return next((sum(counts.values()) for at_s, counts in reversed(self._seconds) if at_s == second_s), 0)

    def since(self, begin_s: float) -> dict[Labels, int]:
        """Counts of the seconds that are kept and ended after a time."""
        found: dict[Labels, int] = {}
        for at_s, counts in reversed(self._seconds):
            if at_s + 1 <= begin_s:
                break
            for labels, count in counts.items():
                found[labels] = found.get(labels, 0) + count
        return found
