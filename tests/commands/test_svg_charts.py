"""Charts as text: every line has its colour and its name, and an axis numbers that one can read."""

import re

import pytest

from jaxserve.commands.svg_charts import Chart


def numbers(chart: Chart, kind: str) -> list[str]:
    return re.findall(rf'<text class="{kind}"[^>]*>([^<]+)</text>', chart.svg())


def test_names_have_the_colour_of_their_line_whatever_the_page_says_of_text() -> None:
    svg = Chart("Two", "s", "n", {"chat": [(0, 1), (1, 2)], "batch": [(0, 2), (1, 1)]}).svg()
    lines = re.findall(r'<polyline stroke="(#\w+)"', svg)
    keys = re.findall(r'style="fill: (#\w+)"[^>]*>(\w+)<', svg)
    assert len(set(lines)) == 2 and keys == [(lines[0], "chat"), (lines[1], "batch")]
    low, high = (float(y) for y in re.findall(r'class="key"[^>]* y="(\d+)"', svg))
    below = Chart("Two", "s", "n", {"a": [(0, 0), (1, 1)], "b": [(0, 0), (1, 1)]}, rising=True).svg()
    assert low < high < min(float(y) for y in re.findall(r'class="key"[^>]* y="(\d+)"', below))
    assert 'class="key"' not in Chart("One", "s", "n", {"": [(0, 1), (1, 2)]}).svg()


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0.001, 100.0, ["0.001", "0.01", "0.1", "1", "10", "100"]),
        (0.2, 5.0, ["0.3", "1", "3"]),
        (0.015, 0.12, ["0.02", "0.05", "0.1"]),
        (0.0062, 0.0199, ["0.0075", "0.01", "0.0125", "0.015", "0.0175"]),
    ],
)
def test_a_logarithmic_axis_has_three_numbers_at_least(low: float, high: float, shown: list[str]) -> None:
    assert numbers(Chart("Log", "", "n", {"": [(low, 0.0), (high, 1.0)]}, log_x=True), "x") == shown


def test_numbers_are_written_out() -> None:
    assert numbers(Chart("Rate", "s", "n", {"": [(0, 8000.0)] * 2}), "y") == ["0", "2,000", "4,000", "6,000", "8,000"]
    assert numbers(Chart("Rate", "s", "n", {"": [(0, 40_000.0)] * 2}), "y")[-1] == "40k"
