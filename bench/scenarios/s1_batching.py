"""S1: static, dynamic and continuous batching, at saturation and below.

Static batches make the first of each four wait for the last, longest at low load. Dynamic batching bounds that wait,
but only while nothing runs. Both keep the slots of those that have ended until the whole batch has. Continuous batching
gives a slot away in the step after.

`slots used` is the time-weighted share of a policy's slots that had a row in the step under way, and `busy` the share
of the time in which there was one: at saturation a static batch is always busy, with half of its slots empty.

On the real engine a batch of 4 or 8 slots has one decode program of that many rows, as batches of a fixed shape have.
`dynamic8 shrinks` has programs of 4 and 1 rows as well, which the engine takes as rows end: what buckets do for a batch
that nobody may join.
"""

import random
from itertools import islice

from bench.scenarios import measure as m
from bench.scenarios.bars import Bar, least, most, reported
from bench.scenarios.outcome import Outcome, Row
from bench.scenarios.stage import Run, Settings, Stage, saturated
from bench.shared.rates import duration_s, throughput
from jaxserve.sim.arrivals import Arrival, lognormal, poisson, uniform

NAME = "S1"
SEEDS = (1, 2, 3)
TOKENS = 4096
CALM = 60
"""Requests at the low load on the real engine, where the time between them passes."""
PREFILL = (32, 64, 128, 256, 512, 1024)
"""Prompt tokens of the real engine's programs, of every policy: a prompt alone in a step is 8 to 128 tokens long."""


def policies(real: bool) -> dict[str, Settings]:
    common: Settings = {"max_num_batched_tokens": 1024 if real else TOKENS}
    if real:
        common["prefill_buckets"] = PREFILL
    shrinks: Settings = common | _decode(real, 1, 4, 8, 64)
    dynamic: Settings = {"policy": "dynamic", "max_batch_size": 8, "batch_timeout_s": 0.05, "max_num_seqs": 64}
    chunked: Settings = {"policy": "chunked", "max_num_seqs": 64, "max_num_batched_tokens": 512}
    found: dict[str, Settings] = {
        "static4": common | {"policy": "static", "batch_size": 4, "max_num_seqs": 64} | _decode(real, 4, 64),
        "dynamic8": common | dynamic | _decode(real, 8, 64),
        "cont8": common | {"policy": "continuous", "max_num_seqs": 8} | _decode(real, 8),
        "cont64": shrinks | {"policy": "continuous", "max_num_seqs": 64},
        "chunked64": shrinks | chunked | _prefill(real),
        "adaptive64": shrinks | {"policy": "adaptive", "max_num_seqs": 64, "tpot_slo_s": TPOT_S[real]} | _sizes(real),
    }
    return found | {"dynamic8 shrinks": shrinks | dynamic} if real else found


SLOTS = {"static4": 4, "dynamic8": 8, "dynamic8 shrinks": 8, "cont8": 8}
"""How many rows a policy can have at most; of those that are not named: 64."""
TPOT_S = {False: 0.030, True: 0.020}
"""What `adaptive64` is to keep: on the simulated H200, and on this CPU."""


def _decode(real: bool, *rows: int) -> Settings:
    """Decode programs of so many rows; in the simulation a step costs by the rows that it has."""
    if not real:
        return {}
    return {"decode_buckets": rows, "mixed_decode_buckets": tuple(size for size in rows if size >= 8) or rows}


def _prefill(real: bool) -> Settings:
    return {"prefill_buckets": tuple(size for size in PREFILL if size <= 512)} if real else {}


def _sizes(real: bool) -> Settings:
    return {} if real else {"prefill_buckets": (64, 128, 256, 512, 1024, 2048, TOKENS)}


def requests(seed: int, real: bool) -> list[tuple[int, int]]:
    """(prompt, output) lengths."""
    rng = random.Random(seed)
    if real:
        return [(uniform(rng, 8, 128), lognormal(rng, 3.2, 0.8, 2, 128)) for _ in range(200)]
    return [(uniform(rng, 32, 512), lognormal(rng, 4.6, 0.8, 8, 512)) for _ in range(400)]


def at_once(lengths: list[tuple[int, int]]) -> list[Arrival]:
    return [Arrival(0.0, prompt, output) for prompt, output in lengths]


def at_rate(lengths: list[tuple[int, int]], seed: int, tokens_per_s: float) -> list[Arrival]:
    """Poisson arrivals that ask for so many output tokens a second on average."""
    mean = sum(output for _, output in lengths) / len(lengths)
    times = islice(poisson(random.Random(1000 + seed), tokens_per_s / mean), len(lengths))
    return [Arrival(at, prompt, output) for at, (prompt, output) in zip(times, lengths, strict=True)]


def mean_of_longest(outputs: list[int], of: int) -> float:
    """E[max of `of` outputs]: from the distribution of the outputs themselves."""
    ordered, n = sorted(outputs), len(outputs)
    return sum(value * (((i + 1) / n) ** of - (i / n) ** of) for i, value in enumerate(ordered))


def run(stage: Stage) -> Outcome:
    rows: list[Row] = []
    ratios: dict[str, list[float]] = {}
    share = 0.8 if stage.real else 0.9
    for seed in SEEDS:
        lengths = requests(seed, stage.real)
        chosen = policies(stage.real)
        full = saturated(stage, at_once(lengths), chosen)
        sat = {name: throughput(run.served) for name, run in full.items()}
        busy = at_rate(lengths, seed, share * sat["dynamic8"])
        calm = at_rate(lengths[: CALM if stage.real else None], seed, 0.5 * sat["static4"])
        loads = {
            "saturation": full,
            f"{share} sat(dynamic8)": {name: stage.run(busy, settings) for name, settings in chosen.items()},
            "0.5 sat(static4)": {name: stage.run(calm, settings) for name, settings in chosen.items()},
        }
        rows += [_row(load, name, seed, run) for load, runs in loads.items() for name, run in runs.items()]
        _, at_busy, at_calm = ({name: run.served for name, run in runs.items()} for runs in loads.values())
        outputs = [output for _, output in lengths]
        formula = mean_of_longest(outputs, 8) / (sum(outputs) / len(outputs))
        for name, value in {
            "formula": formula,
            "sat cont8/dynamic8": sat["cont8"] / sat["dynamic8"],
            "sat cont8/static4": sat["cont8"] / sat["static4"],
            "p99 ttft": m.ttft(at_busy["cont8"], 99) / m.ttft(at_busy["dynamic8"], 99),
            "p50 ttft": m.ttft(at_calm["dynamic8"], 50) / m.ttft(at_calm["static4"], 50),
            "tpot": m.tpot(at_busy["cont8"], 50) / m.tpot(at_busy["dynamic8"], 50),
        }.items():
            ratios.setdefault(name, []).append(value)
        if stage.real:
            ratios.setdefault("sat cont8/shrinks", []).append(sat["cont8"] / sat["dynamic8 shrinks"])
    return Outcome(NAME, stage.name, rows, bars(ratios, stage.real), plot=("TTFT P99 (s)", "tokens/s"))


def bars(r: dict[str, list[float]], real: bool) -> list[Bar]:
    of_formula = [ratio / formula for ratio, formula in zip(r["sat cont8/dynamic8"], r["formula"], strict=True)]
    if real:
        return [
            least("saturation throughput, cont8 / dynamic8", r["sat cont8/dynamic8"], 1.6),
            most("P99 TTFT at 0.8 sat(dynamic8), cont8 / dynamic8", r["p99 ttft"], 0.1),
            reported("saturation throughput, cont8 / dynamic8 shrinks", r["sat cont8/shrinks"]),
            reported("saturation throughput, cont8 / static4", r["sat cont8/static4"]),
        ]
    return [
        least("saturation throughput, cont8 / dynamic8 / (E[max of 8] / E)", of_formula, 0.85),
        reported("saturation throughput, cont8 / dynamic8", r["sat cont8/dynamic8"]),
        least("saturation throughput, cont8 / static4", r["sat cont8/static4"], 3.0),
        most("P99 TTFT at 0.9 sat(dynamic8), cont8 / dynamic8", r["p99 ttft"], 0.05),
        most("P50 TTFT at 0.5 sat(static4), dynamic8 / static4", r["p50 ttft"], 0.6),
        most("P50 TPOT at 0.9 sat(dynamic8), cont8 / dynamic8", r["tpot"], 1.15),
    ]


def _row(load: str, policy: str, seed: int, run: Run) -> Row:
    served, rows = run.served, SLOTS.get(policy, 64)
    return Row(
        {"load": load, "policy": policy},
        seed,
        {
            "tokens/s": throughput(served),
            "busy": run.occupancy.busy_s / duration_s(served),
            "slots used": run.occupancy.row_s / run.occupancy.busy_s / rows,
            "TTFT P50 (s)": m.ttft(served, 50),
            "TTFT P99 (s)": m.ttft(served, 99),
            "TPOT P50 (ms)": 1e3 * m.tpot(served, 50),
            "TPOT P99 (ms)": 1e3 * m.tpot(served, 99),
        },
    )
