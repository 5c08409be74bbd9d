"""Percentiles, by the one definition that all figures here use: linear between the two nearest ranks, as NumPy and
vLLM's benchmark take them.

`percentile` is of values at hand. A `Distribution` takes a stream of numbers in bounded memory: up to `EXACT` values
are kept, and its percentiles are those. From then on values are counted in logarithmic bins, and a percentile is off by
`ACCURACY` of its value at most (Masson, Rim, Lee: "DDSketch", VLDB 2019).
"""

import math
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXACT = 1 << 16
ACCURACY = 0.001
_LEAST, _MOST = 1e-7, 1e7
"""Smaller values count as the least, larger ones as the most; minimum, maximum and mean are exact all the same."""
_STEP = math.log1p(2 * ACCURACY / (1 - ACCURACY))
_BINS = math.ceil(math.log(_MOST / _LEAST) / _STEP) + 1


def percentile(values: Sequence[float] | NDArray[np.float64], percent: float) -> float:
    """The value that `percent` of the values, in any order, do not exceed; nan of nothing."""
    return float(np.percentile(values, percent)) if len(values) else math.nan


class Distribution:
    """Numbers that are not negative: seconds, mostly."""

    def __init__(self, values: Iterable[float] = ()) -> None:
        self._fresh = array("d", values)
        self._bins: NDArray[np.int64] | None = None
        self._folded, self._folded_sum = 0, 0.0
        self._min, self._max = math.inf, -math.inf

    def add(self, value: float) -> None:
        self._fresh.append(value)
        if len(self._fresh) > EXACT:
            self._fold()

    def extend(self, values: Iterable[float]) -> None:
        self._fresh.extend(values)
        if len(self._fresh) > EXACT:
            self._fold()

    def __len__(self) -> int:
        return self._folded + len(self._fresh)

    @property
    def exact(self) -> bool:
        return self._bins is None

    @property
    def mean(self) -> float:
        """nan without values; so are the others."""
        return (self._folded_sum + math.fsum(self._fresh)) / len(self) if len(self) else math.nan

    @property
    def min(self) -> float:
        return min(self._min, min(self._fresh, default=math.inf)) if len(self) else math.nan

    @property
    def max(self) -> float:
        return max(self._max, max(self._fresh, default=-math.inf)) if len(self) else math.nan

    def percentile(self, percent: float) -> float:
        """The value that `percent` of the values do not exceed."""
        return self.percentiles((percent,))[0]

    def percentiles(self, percents: Iterable[float]) -> list[float]:
        percents = list(percents)
        if not len(self):
            return [math.nan] * len(percents)
        if self._bins is None:
            return np.percentile(np.frombuffer(self._fresh), percents).tolist()
        if self._fresh:
            self._fold()
        ranks = np.asarray(percents) / 100 * (self._folded - 1)
        bins = np.searchsorted(np.cumsum(self._bins), ranks, side="right")
        middles = _LEAST * np.exp((bins - 0.5) * _STEP)
        middles = np.where(ranks <= 0, self._min, np.where(ranks >= self._folded - 1, self._max, middles))
        return np.clip(middles, self._min, self._max).tolist()

    def to_json(self) -> dict[str, Any]:
        p50, p90, p95, p99 = self.percentiles((50, 90, 95, 99))
        stored = {"count": len(self), "mean": self.mean, "p50": p50, "p90": p90, "p95": p95, "p99": p99}
        return {name: _finite(value) for name, value in (stored | {"min": self.min, "max": self.max}).items()}

    def curve(self, points: int = 200) -> list[tuple[float, float]]:
        """(value, share of the values up to it): the cumulative distribution, for a plot."""
        if not len(self):
            return []
        shares = np.unique(np.concatenate([np.linspace(0, 1, points), 1 - np.logspace(-4, -1, points // 4)]))
        return list(zip(self.percentiles(shares * 100), shares.tolist(), strict=True))

    def _fold(self) -> None:
        values = np.frombuffer(self._fresh)
        if self._bins is None:
            self._bins = np.zeros(_BINS + 1, np.int64)
        self._min, self._max = min(self._min, float(values.min())), max(self._max, float(values.max()))
        self._folded += len(values)
        self._folded_sum += float(values.sum())
        self._bins += np.bincount(_bin(values), minlength=_BINS + 1)
        del values  # a view of the array that is replaced
        self._fresh = array("d")


def _bin(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Bin i holds (LEAST e^((i-1) STEP), LEAST e^(i STEP)]."""
    ratios = np.log(np.clip(values, _LEAST, _MOST) / _LEAST) / _STEP
    return np.ceil(ratios - 1e-9).astype(np.intp)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
