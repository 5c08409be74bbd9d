"""Series over the time of a run: every bin shows what was the case in it, however long steps are."""

import pytest

from jaxserve.sim.gauges import BINS, Gauges


def test_a_step_longer_than_a_bin_is_in_all_of_its_bins() -> None:
    gauges = Gauges()
    gauges.sample(0.5, 0.5, running=4, waiting=2, kv_usage=0.25, tokens=64)
    gauges.sample(0.72, 0.05, running=2, waiting=0, kv_usage=0.5, tokens=1)
    shown = gauges.to_json()
    assert shown["width_s"] == 1 / 16
    assert shown["running"] == [4.0] * 8 + [0.0] * 2 + [2.0] * 2, "the second step lies over an edge"
    assert shown["kv_usage"][:8] == [0.25] * 8 and shown["tokens_per_s"][:8] == [128.0] * 8
    assert sum(shown["tokens_per_s"]) / 16 == pytest.approx(65) and sum(shown["steps_per_s"]) / 16 == pytest.approx(2)
    assert gauges.kv_usage == pytest.approx((0.5 * 0.25 + 0.05 * 0.5) / 0.55)


def test_bins_are_merged_as_the_run_goes_on() -> None:
    gauges = Gauges()
    for i in range(1, 1001):
        gauges.sample(i / 2, 0.5, running=3, waiting=1, kv_usage=0.5, tokens=10)
    shown = gauges.to_json()
    assert len(shown["running"]) <= BINS and shown["running"][:-1] == [3.0] * (len(shown["running"]) - 1)
    assert sum(shown["tokens_per_s"]) * shown["width_s"] == pytest.approx(10_000, abs=1)
