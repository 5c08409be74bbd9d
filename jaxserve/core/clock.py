"""Time as an argument: whoever needs it is given a `Clock`; the scheduler is given the number itself."""

import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since an origin of the clock's own."""
        ...

    def sleep_until(self, at_s: float) -> None:
        """Return when the clock shows `at_s` or later."""
        ...


class MonotonicClock:
    """The machine's own clock."""

    def now(self) -> float:
        return time.monotonic()

    def sleep_until(self, at_s: float) -> None:
        time.sleep(max(at_s - self.now(), 0.0))


class VirtualClock:
    """A clock that moves only when told: tests and the simulator."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        assert seconds >= 0.0
        self._now += seconds

    def sleep_until(self, at_s: float) -> None:
        self._now = max(self._now, at_s)
