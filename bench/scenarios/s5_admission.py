"""S5: refusing early what could not be served in time, in overload.

Without admission control every request queues, and all of them are late. With it, those whose forecast first token is
past 0.9 of the objective get a 429 with the time after which to come back, and nearly all of the others are in time.
"""

from pathlib import Path

from bench.scenarios import azure, s4_adaptive
from bench.scenarios import measure as m
from bench.scenarios.bars import Bar, each_least, each_most, least, most, reported
from bench.scenarios.outcome import Outcome, Row
from bench.scenarios.stage import Stage
from jaxserve.sim.drive import Served

NAME = "S5"
NEEDS_TRACES = True
COMPRESSIONS = (1.0, 1.6, 2.2, 0.9, 1.2)
TTFT_S, TPOT_S = 1.0, 0.030
LONG = 2000
"""Prompt tokens from which on a request is counted as long."""


def run(stage: Stage, traces: Path) -> Outcome:
    trace = azure.load(traces)
    rows: list[Row] = []
    found: dict[float, dict[str, list[float]]] = {}
    for k in COMPRESSIONS:
        for seed, offset in enumerate(azure.OFFSETS):
            listed = azure.stretch(trace, offset, k)
            settings = s4_adaptive.adaptive(TPOT_S, "fcfs")
            without = stage.run(listed, settings).served
            with_it = stage.run(listed, settings | {"admission": "slo"}).served
            rows += [_row(k, name, seed, served) for name, served in (("without", without), ("with", with_it))]
            for name, value in _figures(without, with_it).items():
                found.setdefault(k, {}).setdefault(name, []).append(value)
    return Outcome(NAME, stage.name, rows, bars(found), plot=("goodput", "refused"))


def _figures(without: list[Served], with_it: list[Served]) -> dict[str, float]:
    admitted = m.done(with_it)
    return {
        "ratio": m.goodput(with_it, TTFT_S, TPOT_S) / m.goodput(without, TTFT_S, TPOT_S),
        "attained": m.goodput(admitted, TTFT_S, TPOT_S),
        "mape": forecast_error(with_it),
        "refused": sum(bool(s.refused) for s in with_it) / len(with_it),
        "covered": covered(with_it),
    }


def forecast_error(served: list[Served]) -> float:
    """Mean of |predicted - measured| / measured over the admitted."""
    pairs = [(s.predicted_ttft_s, s.ttft_s) for s in m.done(served) if s.predicted_ttft_s]
    return sum(abs(p - t) / t for p, t in pairs) / len(pairs)


def covered(served: list[Served]) -> float:
    """Share of the admitted whose first token came within the P90 forecast."""
    pairs = [(s.predicted_p90_s, s.ttft_s) for s in m.done(served) if s.predicted_p90_s]
    return sum(t <= p for p, t in pairs) / len(pairs)


def bars(found: dict[float, dict[str, list[float]]]) -> list[Bar]:
    one, more = found[1.0], found[1.6]
    bars = [
        least("k 1.0: goodput, with / without", one["ratio"], 1.15),
        least("k 1.6: goodput, with / without", more["ratio"], 1.5),
        most("k 1.0: share of requests refused", one["refused"], 0.05),
    ]
    for k, values in found.items():
        bars.append(least(f"k {k}: objectives met among the admitted", values["attained"], 0.98))
        bars.append(most(f"k {k}: mean error of the predicted TTFT", values["mape"], 0.25))
        bars.append(reported(f"k {k}: goodput, with / without", values["ratio"]))
        bars.append(each_least(f"k {k}: first tokens within the P90 forecast, least", values["covered"], 0.85))
        bars.append(each_most(f"k {k}: first tokens within the P90 forecast, most", values["covered"], 0.95))
    return bars


def _row(k: float, name: str, seed: int, served: list[Served]) -> Row:
    refused = [s for s in served if s.refused]
    long = [s for s in served if s.arrival.prompt_tokens >= LONG]
    short = [s for s in served if s.arrival.prompt_tokens < LONG]
    return Row(
        {"k": f"{k:g}", "admission": name},
        seed,
        {
            "goodput": m.goodput(served, TTFT_S, TPOT_S),
            "refused": len(refused) / len(served),
            "refused, long": sum(bool(s.refused) for s in long) / max(len(long), 1),
            "refused, short": sum(bool(s.refused) for s in short) / max(len(short), 1),
            "TTFT P50 (s)": m.ttft(served, 50),
            "TTFT P99 (s)": m.ttft(served, 99),
        },
    )
