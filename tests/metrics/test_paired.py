"""Paired differences: an effect that is there is found, one that is not is not claimed."""

import numpy as np
import pytest

from jaxserve.core.errors import ConfigError
from jaxserve.metrics.paired import difference


def latencies(rng: np.random.Generator, count: int = 400) -> np.ndarray:
    """Neighbours go together, as in a queue."""
    noise = rng.normal(size=count)
    for i in range(1, count):
        noise[i] = 0.7 * noise[i - 1] + 0.7 * noise[i]
    return np.exp(noise)


@pytest.mark.parametrize("percent", [None, 50.0, 90.0])
def test_a_shift_is_found_exactly(percent: float | None) -> None:
    before = latencies(np.random.default_rng(1))
    found = difference(before, before + 0.25, percent)
    assert found.value == pytest.approx(0.25) and found.low == pytest.approx(0.25) == found.high and found.certain


def test_no_effect_is_not_claimed_more_often_than_promised() -> None:
    """Of 60 pairs without an effect about 3 may look as if there were one; independent resampling would say 10."""
    rng = np.random.default_rng(2)
    claims = sum(difference(a := latencies(rng, 200), a + latencies(rng, 200) - latencies(rng, 200), None).certain
                 for _ in range(60))  # fmt: skip
    assert claims <= 9


def test_the_bounds_contain_the_effect_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(60):
        before = latencies(rng, 200)
        found = difference(before, before + 0.3 + 0.5 * rng.normal(size=200), None)
        held += found.low <= 0.3 <= found.high
    assert held >= 52


def test_unpaired_values_are_refused() -> None:
    with pytest.raises(ConfigError, match="as many after as before"):
        difference(np.ones(3), np.ones(4), None)
