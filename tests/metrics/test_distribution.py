"""Percentiles: exact while few, within the promised error when many, and never more memory."""

import math
import random

import numpy as np
import pytest

from jaxserve.metrics import distribution
from jaxserve.metrics.distribution import ACCURACY, Distribution

PERCENTS = (0, 1, 10, 50, 90, 99, 99.9, 100)


def test_few_values_by_hand() -> None:
    """Linear between the nearest ranks: of 4 values the 50th percentile is half way from the second to the third."""
    found = Distribution([4.0, 1.0, 2.0, 3.0])
    assert found.percentiles((0, 50, 90, 100)) == pytest.approx([1.0, 2.5, 3.7, 4.0])
    assert (len(found), found.mean, found.min, found.max, found.exact) == (4, 2.5, 1.0, 4.0, True)


def test_nothing_has_no_percentiles() -> None:
    found = Distribution()
    assert math.isnan(found.percentile(50)) and math.isnan(found.mean) and found.curve() == []
    assert found.to_json()["p99"] is None and found.to_json()["count"] == 0


@pytest.mark.parametrize("scale", [1e-5, 0.01, 300.0])
def test_many_values_stay_within_the_promised_error(monkeypatch, scale: float) -> None:
    monkeypatch.setattr(distribution, "EXACT", 500)
    rng = random.Random(1)
    values = [rng.lognormvariate(0.0, 1.5) * scale for _ in range(20_000)]
    found = Distribution()
    for value in values[:5000]:
        found.add(value)
    for begin in range(5000, len(values), 77):
        found.extend(values[begin : begin + 77])
    assert not found.exact and len(found) == len(values)
    assert found.mean == pytest.approx(np.mean(values)) and (found.min, found.max) == (min(values), max(values))
    exact = np.percentile(values, PERCENTS, method="lower").tolist()
    assert found.percentiles(PERCENTS) == pytest.approx(exact, rel=1.01 * ACCURACY)


def test_zero_and_enormous_values_are_counted(monkeypatch) -> None:
    monkeypatch.setattr(distribution, "EXACT", 4)
    found = Distribution([0.0, 0.0, 0.0, 0.0, 1e9])
    found.add(0.0)
    assert found.percentile(50) <= 1e-6 and found.percentile(100) > 9e6 and found.max == 1e9


def test_the_memory_does_not_grow(monkeypatch) -> None:
    monkeypatch.setattr(distribution, "EXACT", 100)
    found = Distribution()
    sizes = set()
    for i in range(1, 2000):
        found.add(i / 100)
        sizes.add(len(found._fresh))
    assert max(sizes) <= 101


def test_a_curve_rises_to_one() -> None:
    curve = Distribution(i / 7 for i in range(1, 900)).curve()
    assert curve == sorted(curve) and curve[-1] == (899 / 7, 1.0) and curve[0] == (1 / 7, 0.0)
