"""The highest rate at which an objective still holds: doubling until it fails, then halving the gap."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from jaxserve.metrics.slo import Bound
from jaxserve.metrics.summary import GroupSummary

MOST_FAILED = 0.01
"""Share of the requests that may be refused or fail."""


@dataclass(frozen=True, slots=True)
class Probe:
    rate: float
    holds: bool
    group: GroupSummary
    why: str
    """The first bound that does not hold, with what was measured."""


def judge(rate: float, group: GroupSummary, bounds: tuple[Bound, ...]) -> Probe:
    """An objective holds if every bound does, and hardly any request was refused or failed."""
    lost = 1.0 - group.completed / group.offered if group.offered else 1.0
    broken = [f"{bound} was {group.value(bound):.4g}" for bound in bounds if not group.value(bound) <= bound.limit]
    if lost > MOST_FAILED:
        broken.insert(0, f"{lost:.1%} refused or failed")
    return Probe(rate, not broken, group, broken[0] if broken else "")


async def find_max_rate(
    probe: Callable[[float], Awaitable[Probe]], start: float, tolerance: float = 0.05, most_probes: int = 20
) -> list[Probe]:
    """All probes, in order. The answer is the highest rate that held; none if even start / 1024 did not.

    Ends when the highest rate that holds and the lowest above it that does not are within `tolerance`.
    """
    probes: list[Probe] = []
    held, failed, rate = 0.0, float("inf"), start
    while len(probes) < most_probes:
        probes.append(await probe(rate))
        if probes[-1].holds:
            held = max(held, rate)
        else:
            failed = min(failed, rate)
        if (held and failed <= held * (1.0 + tolerance)) or failed < start / 1000:
            break
        rate = held * 2.0 if failed == float("inf") else (held * failed) ** 0.5 if held else failed / 2.0
    return probes


def best(probes: list[Probe]) -> Probe | None:
    return max((p for p in probes if p.holds), key=lambda p: p.rate, default=None)
