"""Bars: what a scenario must reach, and whether it did."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

SEED_SHARE = 0.9
"""Each single seed has to reach this share of the bar."""


@dataclass(frozen=True, slots=True)
class Bar:
    """`values`: one a seed. `at_least`: the bar is a least value, else a most. `bar` None: reported only."""

    name: str
    values: Sequence[float]
    bar: float | None
    at_least: bool = True
    every: bool = False
    """Each value has to meet the bar, and not the median."""

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def met(self) -> bool:
        if self.bar is None:
            return True
        if self.every:
            return min(self.values) >= self.bar if self.at_least else max(self.values) <= self.bar
        if self.at_least:
            return self.median >= self.bar and min(self.values) >= SEED_SHARE * self.bar
        return self.median <= self.bar and max(self.values) <= self.bar / SEED_SHARE

    def __str__(self) -> str:
        spread = f"{min(self.values):.3f} - {max(self.values):.3f}"
        wanted = "reported" if self.bar is None else f"{'>=' if self.at_least else '<='} {self.bar:g}"
        verdict = "" if self.bar is None else ("met" if self.met else "MISSED")
        return f"{self.name:62s} {self.median:9.3f}  ({spread})  {wanted:12s} {verdict}"


def least(name: str, values: Sequence[float], bar: float) -> Bar:
    return Bar(name, values, bar, True)


def most(name: str, values: Sequence[float], bar: float) -> Bar:
    return Bar(name, values, bar, False)


def reported(name: str, values: Sequence[float]) -> Bar:
    return Bar(name, values, None)


def each_least(name: str, values: Sequence[float], bar: float) -> Bar:
    return Bar(name, values, bar, True, every=True)


def each_most(name: str, values: Sequence[float], bar: float) -> Bar:
    return Bar(name, values, bar, False, every=True)
