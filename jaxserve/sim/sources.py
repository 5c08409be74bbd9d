"""Where requests come from while a drive runs: a list that knows its times, or users who wait for their answers."""

import dataclasses
import heapq
from collections.abc import Iterable, Iterator
from typing import Protocol

from jaxserve.sim.arrivals import Arrival


class Source(Protocol):
    @property
    def next_s(self) -> float | None:
        """When the next request comes, as far as is known now; None: nothing is known to come."""
        ...

    @property
    def more(self) -> bool:
        """More requests will come, now known or not."""
        ...

    def take(self) -> tuple[int, Arrival]:
        """The next request and its number."""
        ...

    def ended(self, at_s: float, number: int) -> None:
        """The request of that number has ended, or was refused."""
        ...


class OpenLoop:
    """Requests that come at their own times, whatever becomes of those before. Read one by one."""

    def __init__(self, arrivals: Iterable[Arrival]) -> None:
        self._coming = enumerate(arrivals)
        self._head = next(self._coming, None)

    @property
    def next_s(self) -> float | None:
        return self._head[1].at_s if self._head is not None else None

    @property
    def more(self) -> bool:
        return self._head is not None

    def take(self) -> tuple[int, Arrival]:
        taken, self._head = self._head, next(self._coming, None)
        assert taken is not None
        return taken

    def ended(self, at_s: float, number: int) -> None:
        pass


class ClosedLoop:
    """`users` who send their next request `think_s` after the answer to the one before; `requests` in order, no more.

    The requests' own times do not count.
    """

    def __init__(self, requests: Iterable[Arrival], users: int, think_s: float = 0.0) -> None:
        self._think_s = think_s
        self._requests: Iterator[Arrival] = iter(requests)
        self._head = next(self._requests, None)
        self._ready = [0.0] * users
        self._number = -1

    @property
    def next_s(self) -> float | None:
        return self._ready[0] if self._ready and self._head is not None else None

    @property
    def more(self) -> bool:
        return self._head is not None

    def take(self) -> tuple[int, Arrival]:
        assert self._head is not None
        arrival = dataclasses.replace(self._head, at_s=heapq.heappop(self._ready))
        self._head = next(self._requests, None)
        self._number += 1
        return self._number, arrival

    def ended(self, at_s: float, number: int) -> None:
        heapq.heappush(self._ready, at_s + self._think_s)
