"""How far forecasts of the first token were off.

The median of measured over predicted time corrects later forecasts; the 0.9 quantile makes the P90 forecast. Each
tenant has its own errors, so that no tenant's requests move the forecasts of another. An error is known only when a
first token comes. Two rules keep old errors from standing in the way of new ones:

* An error counts for `MEMORY_S`. When the last few differ from the others by a factor, the others are forgotten.
* A refused request yields no error. Therefore a tenant of which no forecast is open gets a *trial* from time to time:
  one request is let in although it is forecast to be late. The time to the next trial doubles when the trial was late
  indeed, and is the shortest again when it was not.
"""

from bisect import bisect_left, insort
from collections import deque

WINDOW = 256
"""Errors that are remembered, of each tenant."""
ENOUGH = 8
"""Errors from which on forecasts are corrected, and the last errors that can show a change."""
CHANGED = 1.5
"""The median of the last errors is this many times the median of all, or less than 1 / this: something has changed."""
MEMORY_S = 60.0
"""How long an error counts."""
TRIAL_S = 0.5
"""Time without an error after which a trial is made, at least and at most."""
LONGEST_TRIAL_S = 8.0


class ForecastErrors:
    """Of one tenant. An error is measured over predicted time."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, float]] = deque()  # when, error
        self._errors: list[float] = []
        self._known_s: float | None = None
        self._trial_s = TRIAL_S

    def observe(self, predicted_s: float, measured_s: float, now: float) -> None:
        """What a forecast, uncorrected, said, and what happened."""
        if predicted_s <= 0.0:
            return
        self._known_s = now
        error = measured_s / predicted_s
        self._recent.append((now, error))
        insort(self._errors, error)
        if len(self._recent) > WINDOW:
            self._forget_oldest()
        if len(self._recent) > 2 * ENOUGH:
            last = sorted([self._recent[-i][1] for i in range(1, ENOUGH + 1)])
            change = last[ENOUGH // 2] / self._errors[len(self._errors) // 2]
            if not 1.0 / CHANGED < change < CHANGED:
                while len(self._recent) > ENOUGH:
                    self._forget_oldest()

    def quantile(self, share: float, now: float) -> float:
        """The factor with which this share of the forecasts covers what happened: the nearest rank."""
        while self._recent and now - self._recent[0][0] > MEMORY_S:
            self._forget_oldest()
        if len(self._errors) < ENOUGH:
            return 1.0
        return self._errors[min(int(share * len(self._errors)), len(self._errors) - 1)]

    def _forget_oldest(self) -> None:
        _, error = self._recent.popleft()
        del self._errors[bisect_left(self._errors, error)]

    # --- trials -----------------------------------------------------------------------------------------------

    def take_trial(self, now: float) -> bool:
        """Whether a request that would be refused is let in to learn from; no forecast of the tenant may be open."""
        if self._known_s is None:
            self._known_s = now
        if now - self._known_s < self._trial_s:
            return False
        self._known_s = now
        return True

    def tried(self, late: bool) -> None:
        """The request that was let in has its first token: too late, as it was forecast, or in time."""
        self._trial_s = min(2.0 * self._trial_s, LONGEST_TRIAL_S) if late else TRIAL_S
