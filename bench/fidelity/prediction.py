"""What the learnt steps predict of runs that they have not seen, how wrong that is, and how it is shown."""

import statistics
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from bench.fidelity.rounds import STEADY, Part, Round, drift
from bench.shared.rates import throughput
from jaxserve.commands.disturbance import QUIET
from jaxserve.commands.tables import table
from jaxserve.costs.fitted import Sample, fit_steps
from jaxserve.costs.model import CostModel, StepFeatures
from jaxserve.metrics.summary import GroupSummary, Summary
from jaxserve.sim.counterfactual import pool
from jaxserve.sim.drive import Served
from jaxserve.sim.replay import replay
from jaxserve.sim.simulate import simulate

BARS = {
    "saturation tokens/s": 0.08, "ttft p50": 0.10, "ttft p90": 0.15, "ttft p99": 0.30, "tpot p50": 0.10,
    "tpot p90": 0.15, "tpot p99": 0.30, "step, unseen cells": 0.12, "busy time": 0.07,
}  # fmt: skip
"""Largest error's size, on a CPU of two busy cores."""
SAME_DECISIONS = 0.99


@dataclass
class Pairs:
    """By figure: what was predicted and what was measured, one pair a repeat."""

    predicted: dict[str, list[float]] = field(default_factory=dict)
    measured: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, predicted: float, measured: float) -> None:
        self.predicted.setdefault(name, []).append(predicted)
        self.measured.setdefault(name, []).append(measured)

    def error(self, name: str) -> float:
        pairs = zip(self.predicted[name], self.measured[name], strict=True)
        return statistics.median(abs(p / m - 1.0) for p, m in pairs)


@dataclass(slots=True)
class Conditions:
    """Round by round: what tells whether its errors are the simulator's."""

    decisions: list[float] = field(default_factory=list)
    """Share of the decisions that the replay repeated."""
    others: list[float | None] = field(default_factory=list)
    drift: list[tuple[float, float] | None] = field(default_factory=list)


def predict(found: Round, pairs: Pairs, conditions: Conditions) -> None:
    """What the learnt steps say of the other runs."""
    cost = fit_steps(found.learnt, "measured: this machine, just now")
    for name, parts in (("saturation tokens/s", found.saturated), ("tokens/s under load", found.loaded)):
        predicted, measured = [_simulated(part, cost) for part in parts], [part.served for part in parts]
        pairs.add(name, throughput(*predicted), throughput(*measured))
        if parts is found.loaded:
            _latencies(predicted, measured, pairs)
    records = [part.record for part in (*found.saturated, *found.loaded)]
    _steps(cost, found.learnt, [(s.features, s.seconds) for record in records for s in record.steps], pairs)
    conditions.decisions.append(min(replay(record).share for record in records))
    conditions.others.append(found.others)
    conditions.drift.append(drift(cost, found.loaded))


def _simulated(part: Part, cost: CostModel) -> list[Served]:
    served: list[Served] = []
    simulate(pool(part.record.config, part.record), part.arrivals, cost, watch=served.append)
    return served


def _latencies(predicted: list[list[Served]], measured: list[list[Served]], pairs: Pairs) -> None:
    """The percentiles of all requests of the runs together."""
    before, after = _summed(predicted), _summed(measured)
    for metric in ("ttft", "tpot"):
        for percent in (50, 90, 99):
            of = [found.distribution(metric).percentile(percent) for found in (before, after)]
            pairs.add(f"{metric} p{percent}", *of)


def _summed(runs: list[list[Served]]) -> GroupSummary:
    summary = Summary()
    for served in chain(*runs):
        summary.add(served)
    return summary.all


def _steps(
    cost: CostModel,
    learnt: list[Sample],
    fresh: list[Sample],
    pairs: Pairs,
) -> None:
    """Cells are a bucket and powers of two of what is in it: those that the learning did not see, by their medians."""
    seen = {_cell(features) for features, _ in learnt}
    cells: dict[object, list[tuple[float, float]]] = {}
    for features, seconds in fresh:
        if (cell := _cell(features)) not in seen:
            cells.setdefault(cell, []).append((cost.seconds(features), seconds))
    if cells:
        errors = [abs(float(np.median([p / m for p, m in cell])) - 1.0) for cell in cells.values()]
        pairs.add("step, unseen cells", 1.0 + statistics.median(errors), 1.0)
    pairs.add("busy time", sum(cost.seconds(f) for f, _ in fresh), sum(s for _, s in fresh))


def _cell(f: StepFeatures) -> object:
    return f.bucket, f.prefill_tokens.bit_length(), int(f.prefill_pairs).bit_length(), f.decode_context.bit_length()


def rows(pairs: Pairs, shares: list[float]) -> list[dict[str, Any]]:
    """One a figure: medians, the error's size, its bar."""
    found: list[dict[str, Any]] = [
        {
            "name": name,
            "predicted": statistics.median(pairs.predicted[name]),
            "measured": statistics.median(pairs.measured[name]),
            "error": pairs.error(name),
            "bar": BARS.get(name),
        }
        for name in pairs.predicted
    ]
    if shares:
        same = statistics.median(shares)
        found.append({"name": "same decisions", "predicted": same, "measured": 1.0, "error": 1.0 - same,
                      "bar": 1.0 - SAME_DECISIONS})  # fmt: skip
    return found


def shown(found: list[dict[str, Any]]) -> str:
    lines = []
    for row in found:
        scale, unit = (1e3, " ms") if row["name"].startswith(("ttft", "tpot")) else (1.0, "")
        verdict = "" if row["bar"] is None else "ok" if row["error"] <= row["bar"] else "MISSED"
        bar = None if row["bar"] is None else f"{row['bar']:.0%}"
        lines.append(
            [row["name"] + unit, scale * row["predicted"], scale * row["measured"], f"{row['error']:.1%}", bar, verdict]
        )
    return table(["", "predicted", "measured", "error", "bar", ""], lines)


def said_of_others(shares: list[float | None]) -> str:
    known = [share for share in shares if share is not None]
    if not known:
        return "this system does not say what other processes took"
    verdict = "quiet" if max(known) <= QUIET else f"NOT quiet (up to {QUIET:.0%} would be)"
    return f"other processes took {', '.join(f'{share:.1%}' for share in known)} of the processors: {verdict}"


def said_of_drift(rounds: list[tuple[float, float] | None]) -> str:
    known = [found for found in rounds if found is not None]
    if not known:
        return "too few steps to see whether this machine's speed was steady"
    moved = sum(not (low >= 1.0 - STEADY and high <= 1.0 + STEADY) for low, high in known)
    verdict = f"NOT steady in {moved} of {len(known)} rounds (within {STEADY:.0%} would be)" if moved else "steady"
    ranges = ", ".join(f"{low:.2f}-{high:.2f}" for low, high in known)
    return f"in half seconds under load, steps took {ranges} times what was predicted of them: {verdict}"
