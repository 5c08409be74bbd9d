"""Errors of forecasts: what corrects, what is forgotten, and how a tenant that is refused gets new ones."""

import pytest

from jaxserve.sched.forecast_errors import ENOUGH, LONGEST_TRIAL_S, MEMORY_S, TRIAL_S, WINDOW, ForecastErrors


def errors_of(*ratios: float, now: float = 0.0) -> ForecastErrors:
    found = ForecastErrors()
    for ratio in ratios:
        found.observe(1.0, ratio, now)
    return found


def test_quantiles_are_lengths_that_occurred() -> None:
    found = errors_of(*(1.0 + 0.01 * i for i in range(20)))
    assert found.quantile(0.5, 0.0) == pytest.approx(1.1) and found.quantile(0.9, 0.0) == pytest.approx(1.18)


def test_a_few_errors_correct_nothing() -> None:
    assert errors_of(*[2.0] * (ENOUGH - 1)).quantile(0.5, 0.0) == 1.0
    assert errors_of(*[2.0] * ENOUGH).quantile(0.5, 0.0) == 2.0


def test_a_change_by_a_factor_is_followed_at_once() -> None:
    found = errors_of(*[1.0] * WINDOW, *[4.0] * ENOUGH)
    assert found.quantile(0.5, 0.0) == 4.0
    found = errors_of(*[4.0] * WINDOW, *[1.0] * ENOUGH)
    assert found.quantile(0.5, 0.0) == 1.0


def test_errors_are_forgotten_in_time() -> None:
    found = errors_of(*[4.0] * 50)
    assert found.quantile(0.5, MEMORY_S) == 4.0 and found.quantile(0.5, MEMORY_S + 0.1) == 1.0


def test_a_refused_tenant_is_tried_again() -> None:
    found = errors_of(1.0, now=10.0)
    assert not found.take_trial(10.0 + 0.9 * TRIAL_S)
    assert found.take_trial(10.0 + TRIAL_S)
    assert not found.take_trial(10.0 + 1.9 * TRIAL_S), "one at a time"


def test_trials_become_rare_while_they_are_late() -> None:
    found, now, waited = errors_of(1.0), 0.0, []
    for late in (True, True, True, True, True, True, False):
        since = now
        while not found.take_trial(now):
            now += 0.125
        waited.append(now - since)
        found.observe(1.0, 1.0, now)
        found.tried(late)
    assert waited == [TRIAL_S, 2 * TRIAL_S, 4 * TRIAL_S, 8 * TRIAL_S, *[LONGEST_TRIAL_S] * 3]
    assert found.take_trial(now + TRIAL_S), "one came in time: the forecasts are wrong"
