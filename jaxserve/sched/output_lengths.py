"""How long outputs are likely to be, by tenant: for bookings and forecasts, which are made before an output is known.

Until a tenant has finished `ENOUGH` requests, the most that it may produce; then a quantile of its last `WINDOW` ones.
"""

from bisect import bisect_left, insort
from collections import deque

WINDOW = 256
ENOUGH = 16


class OutputLengths:
    def __init__(self) -> None:
        self._recent: dict[str, deque[int]] = {}
        self._sorted: dict[str, list[int]] = {}
        self._sum: dict[str, int] = {}

    def note(self, tenant: str, outputs: int) -> None:
        """A request of the tenant has ended with `outputs` output tokens."""
        recent = self._recent.setdefault(tenant, deque())
        ordered = self._sorted.setdefault(tenant, [])
        recent.append(outputs)
        insort(ordered, outputs)
        self._sum[tenant] = self._sum.get(tenant, 0) + outputs
        if len(recent) > WINDOW:
            oldest = recent.popleft()
            del ordered[bisect_left(ordered, oldest)]
            self._sum[tenant] -= oldest

    def known(self, tenant: str) -> bool:
        """Whether enough of the tenant's requests have ended."""
        return len(self._recent.get(tenant, ())) >= ENOUGH

    def quantile(self, tenant: str, share: float, most: int) -> int:
        """Output tokens that suffice for this share of the tenant's requests; at most `most`.

        The nearest rank, a length that has occurred, while `metrics.distribution` interpolates between two.
        """
        if not self.known(tenant):
            return most
        ordered = self._sorted[tenant]
        return min(ordered[min(int(share * len(ordered)), len(ordered) - 1)], most)

    def mean(self, default: float) -> float:
        """Over all tenants."""
        count = sum(map(len, self._recent.values()))
        return sum(self._sum.values()) / count if count >= ENOUGH else default
