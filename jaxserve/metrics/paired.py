"""Did it change anything? Differences of the same requests served in two ways, with confidence intervals.

Neighbours wait in the same queue, so their latencies go together, and resampling single requests would promise too
much. Blocks of consecutive requests are resampled instead (Künsch, "The jackknife and the bootstrap for general
stationary observations", 1989), the same ones from both runs.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxserve.core.settings import require
from jaxserve.metrics.distribution import percentile

Vector = NDArray[np.float64]
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Difference:
    """Of a statistic: what it was, what it became, and between which bounds the difference lies."""

    before: float
    after: float
    low: float
    high: float
    """Bounds of after - before at the confidence asked for."""

    @property
    def value(self) -> float:
        return self.after - self.before

    @property
    def certain(self) -> bool:
        """No difference at all is outside the bounds."""
        return self.low > 0.0 or self.high < 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "before": self.before, "after": self.after, "difference": self.value, "low": self.low, "high": self.high,
            "certain": self.certain,
        }  # fmt: skip


def difference(
    before: Vector, after: Vector, percent: float | None, seed: int = 0, confidence: float = 0.95
) -> Difference:
    """Of the mean (`percent` None) or a percentile of paired values, in the order in which the requests came.

    Args:
      before, after: one value a request, in the same order.  # [requests]
    """
    require(len(before) == len(after) > 0, "paired values", len(after), f"as many after as before ({len(before)})")
    picks = _blocks(len(before), np.random.default_rng(seed))
    deltas = [_statistic(after[pick], percent) - _statistic(before[pick], percent) for pick in picks]
    low, high = np.quantile(deltas, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    return Difference(_statistic(before, percent), _statistic(after, percent), low, high)


def _statistic(values: Vector, percent: float | None) -> float:
    return float(values.mean()) if percent is None else percentile(values, percent)


def _blocks(count: int, rng: np.random.Generator) -> "list[NDArray[np.intp]]":
    """Resamples of `count` positions, in runs of its cube root, around the end to the start."""
    length = max(1, math.ceil(count ** (1 / 3)))
    runs = -(-count // length)
    offsets = np.arange(length)
    return [((rng.integers(count, size=runs)[:, None] + offsets) % count).reshape(-1)[:count] for _ in range(RESAMPLES)]
