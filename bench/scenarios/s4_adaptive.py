"""S4: a token budget chosen every step, against the best fixed one, on real traffic and three objectives.

All policies prefill in the same order, shortest remaining first, so that the order does not flatter the budget; what
the order itself is worth is measured beside it.
"""

from pathlib import Path

from bench.scenarios import azure
from bench.scenarios import measure as m
from bench.scenarios.bars import each_least, reported
from bench.scenarios.outcome import Outcome, Row
from bench.scenarios.stage import Settings, Stage
from jaxserve.sim.drive import Served

NAME = "S4"
NEEDS_TRACES = True
COMPRESSION = 1.2
TTFT_S = 1.0
TPOTS_S = (0.016, 0.030, 0.060)
BUDGETS = (256, 512, 1024, 2048)
SIZES = (32, 64, 96, *range(128, 1025, 64), *range(1152, 2049, 128))
COMMON: Settings = {"num_blocks": 50_000, "max_num_seqs": 256, "ordering": "shortest", "shortest_ageing_s": 8.0}


def fixed(budget: int) -> Settings:
    return COMMON | {"policy": "chunked", "max_num_batched_tokens": budget, "chunk_size": budget}


def adaptive(tpot_s: float, ordering: str = "shortest") -> Settings:
    return COMMON | {
        "policy": "adaptive", "max_num_batched_tokens": SIZES[-1], "prefill_buckets": SIZES, "tpot_slo_s": tpot_s,
        "ordering": ordering, "ttft_slo_s": TTFT_S,
    }  # fmt: skip


def run(stage: Stage, traces: Path) -> Outcome:
    trace = azure.load(traces)
    rows: list[Row] = []
    cells: list[dict[str, float]] = []
    attained: list[float] = []
    order: list[float] = []
    for seed, offset in enumerate(azure.OFFSETS):
        listed = azure.stretch(trace, offset, COMPRESSION)
        same = {f"fixed {budget}": stage.run(listed, fixed(budget)).served for budget in BUDGETS}
        for tpot_s in TPOTS_S:
            runs = same | {"adaptive": stage.run(listed, adaptive(tpot_s)).served}
            runs["adaptive, fcfs"] = stage.run(listed, adaptive(tpot_s, "fcfs")).served
            cells.append({name: m.goodput(served, TTFT_S, tpot_s) for name, served in runs.items()})
            attained.append(_meets_tpot(runs["adaptive"], tpot_s))
            if tpot_s == 0.030:
                order.append(cells[-1]["adaptive"] - cells[-1]["adaptive, fcfs"])
            rows += [_row(tpot_s, name, seed, served) for name, served in runs.items()]
    best = [cell["adaptive"] - max(cell[f"fixed {b}"] for b in BUDGETS) for cell in cells]
    worst = [max(cell["adaptive"] - cell[f"fixed {b}"] for cell in cells) for b in BUDGETS]
    bars = [
        each_least("goodput, adaptive - best fixed budget, each of 9 cells", best, -0.01),
        each_least("goodput, adaptive - fixed, its worst cell, each budget", worst, 0.05),
        each_least("share of requests within their TPOT, adaptive, each cell", attained, 0.98),
        each_least("goodput at 30 ms, adaptive with order - first come", order, 0.04),
        reported("goodput, adaptive", [cell["adaptive"] for cell in cells]),
    ]
    return Outcome(NAME, stage.name, rows, bars, plot=("goodput", "TTFT P99 (s)"))


def _meets_tpot(served: list[Served], tpot_s: float) -> float:
    whole = m.done(served)
    return sum(s.tpot_s <= tpot_s for s in whole) / len(whole)


def _row(tpot_s: float, policy: str, seed: int, served: list[Served]) -> Row:
    return Row(
        {"TPOT objective": f"{1e3 * tpot_s:.0f} ms", "policy": policy},
        seed,
        {
            "goodput": m.goodput(served, TTFT_S, tpot_s),
            "within TPOT": _meets_tpot(served, tpot_s),
            "TTFT P50 (s)": m.ttft(served, 50),
            "TTFT P99 (s)": m.ttft(served, 99),
            "TPOT P99 (ms)": 1e3 * m.tpot(served, 99),
        },
    )
