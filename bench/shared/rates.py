"""Rates over runs that came one after the other, each from its first arrival to its last token."""

from collections.abc import Sequence

from jaxserve.sim.drive import Served


def duration_s(*runs: Sequence[Served]) -> float:
    return sum(
        max(served.token_s[-1] for served in run if served.token_s) - min(served.arrival_s for served in run)
        for run in runs
    )


def throughput(*runs: Sequence[Served]) -> float:
    """Output tokens a second."""
    return sum(len(served.token_s) for run in runs for served in run) / duration_s(*runs)
