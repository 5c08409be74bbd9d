"""S2: short prompts among long ones, whole or in chunks, and in which order.

Chunking cures the gaps between tokens: nobody who decodes waits for a whole long prompt. It does not cure the time to
first token of the short ones, which still queue behind the long: the order does, shortest remaining prefill first.
"""

import random
from itertools import islice

from bench.scenarios import measure as m
from bench.scenarios.bars import Bar, least, most, reported
from bench.scenarios.outcome import Outcome, Row
from bench.scenarios.stage import Settings, Stage, saturated
from bench.shared.rates import throughput
from jaxserve.sim.arrivals import Arrival, lognormal, poisson, uniform
from jaxserve.sim.drive import Served

NAME = "S2"
SEEDS = (11, 12)


def policies(real: bool) -> dict[str, Settings]:
    if real:
        rows = (8, 16, 24, 32)
        common: Settings = {"max_num_seqs": 32, "decode_buckets": (1, *rows), "mixed_decode_buckets": rows}
        whole = {"policy": "continuous", "max_num_batched_tokens": 512, "prefill_buckets": (64, 128, 256, 512)}
        chunks = {"policy": "chunked", "chunk_size": 128, "max_num_batched_tokens": 160}
        chunks["prefill_buckets"] = (16, 32, 64, 128)
    else:
        common = {"max_num_seqs": 128}
        whole = {"policy": "continuous", "max_num_batched_tokens": 4096}
        chunks = {"policy": "chunked", "chunk_size": 512, "max_num_batched_tokens": 512}
    return {
        "off": common | whole,
        "on_fcfs": common | chunks,
        "on_srpf": common | chunks | {"ordering": "shortest"},
    }


def sweep(real: bool) -> dict[str, Settings]:
    """First come, first served in chunks of every size; the step's budget is the chunk and, on the CPU, its decodes."""
    found: dict[str, Settings] = {}
    for chunk in (16, 32, 64, 128, 256) if real else (128, 256, 512, 1024, 2048, 4096):
        own: Settings = {"chunk_size": chunk, "max_num_batched_tokens": chunk + 32 if real else chunk}
        if real:
            own["prefill_buckets"] = (*(size for size in (16, 64) if size < chunk), chunk, chunk + 32)
        found[f"chunk {chunk}"] = policies(real)["on_fcfs"] | own
    return found


SWEEP_LOAD = 0.8
"""Of sat(off): where every chunk size is run, on the first seed's requests."""


def requests(seed: int, real: bool) -> list[tuple[str, int, int]]:
    """(kind, prompt, output)"""
    rng = random.Random(seed)
    found = []
    for _ in range(400 if real else 800):
        kind = "short" if rng.random() < 0.7 else "long"
        low, high = {
            (False, "short"): (16, 99),
            (False, "long"): (2000, 4000),
            (True, "short"): (4, 24),
            (True, "long"): (256, 448),
        }[real, kind]
        output = lognormal(rng, 2.7, 0.7, 2, 64) if real else lognormal(rng, 4.6, 0.7, 8, 512)
        found.append((kind, uniform(rng, low, high), output))
    return found


def arrivals(lengths: list[tuple[str, int, int]], seed: int, requests_per_s: float | None) -> list[Arrival]:
    """Poisson, or, without a rate, all at once."""
    if requests_per_s is None:
        return [Arrival(0.0, prompt, output, kind=kind) for kind, prompt, output in lengths]
    times = islice(poisson(random.Random(1000 + seed), requests_per_s), len(lengths))
    return [Arrival(at, p, o, kind=kind) for at, (kind, p, o) in zip(times, lengths, strict=True)]


def run(stage: Stage) -> Outcome:
    rows: list[Row] = []
    swept: list[Row] = []
    ratios: dict[str, dict[str, list[float]]] = {}
    for seed in SEEDS:
        lengths, chosen = requests(seed, stage.real), policies(stage.real)
        full = {name: run.served for name, run in saturated(stage, arrivals(lengths, seed, None), chosen).items()}
        sat = {name: throughput(served) for name, served in full.items()}
        rows += [_row("saturation", name, seed, served) for name, served in full.items()]
        ratios.setdefault("saturation", {}).setdefault("throughput", []).append(sat["on_fcfs"] / sat["off"])
        mean = sum(output for _, _, output in lengths) / len(lengths)
        for share in (0.8,) if stage.real else (0.6, 0.8, 0.95):
            load = f"{share} sat(off)"
            listed = arrivals(lengths, seed, share * sat["off"] / mean)
            runs = {name: stage.run(listed, s).served for name, s in chosen.items()}
            rows += [_row(load, name, seed, served) for name, served in runs.items()]
            for name, value in compare(runs).items():
                ratios.setdefault(load, {}).setdefault(name, []).append(value)
            if share == SWEEP_LOAD and seed == SEEDS[0]:
                sizes = {name: stage.run(listed, settings).served for name, settings in sweep(stage.real).items()}
                swept = [_row(f"{load}, every chunk", name, seed, served) for name, served in sizes.items()]
    found = [bar for load, values in ratios.items() for bar in bars(load, values, stage.real)]
    return Outcome(NAME, stage.name, rows + swept, found, plot=("TBT P99 (ms)", "short TTFT P99 (s)"))


def compare(runs: dict[str, list[Served]]) -> dict[str, float]:
    off, fcfs, srpf = runs["off"], runs["on_fcfs"], runs["on_srpf"]

    def kind(run: list[Served], wanted: str) -> float:
        return m.ttft(m.only(run, lambda s: s.arrival.kind == wanted), 99)

    return {
        "tbt p99": m.percentile(m.gaps(fcfs), 99) / m.percentile(m.gaps(off), 99),
        "tbt max": max(m.gaps(fcfs)) / max(m.gaps(off)),
        "tpot p99": m.tpot(fcfs, 99) / m.tpot(off, 99),
        "short srpf/off": kind(srpf, "short") / kind(off, "short"),
        "short srpf/fcfs": kind(srpf, "short") / kind(fcfs, "short"),
        "short fcfs/off": kind(fcfs, "short") / kind(off, "short"),
        "long srpf/off": kind(srpf, "long") / kind(off, "long"),
    }


def bars(load: str, r: dict[str, list[float]], real: bool) -> list[Bar]:
    if load == "saturation":
        return [least("throughput at saturation, on_fcfs / off", r["throughput"], 0.95)]
    if real:
        return [
            most(f"{load}: TBT P99, on_fcfs / off", r["tbt p99"], 0.4),
            most(f"{load}: short TTFT P99, on_srpf / on_fcfs", r["short srpf/fcfs"], 0.4),
            reported(f"{load}: long TTFT P99, on_srpf / off", r["long srpf/off"]),
        ]
    return [
        most(f"{load}: TBT P99, on_fcfs / off", r["tbt p99"], 0.25),
        most(f"{load}: TBT max, on_fcfs / off", r["tbt max"], 0.10),
        most(f"{load}: TPOT P99, on_fcfs / off", r["tpot p99"], 0.8),
        most(f"{load}: short TTFT P99, on_srpf / off", r["short srpf/off"], 0.30),
        most(f"{load}: long TTFT P99, on_srpf / off", r["long srpf/off"], 3.5),
        reported(f"{load}: short TTFT P99, on_fcfs / off", r["short fcfs/off"]),
    ]


def _row(load: str, policy: str, seed: int, served: list[Served]) -> Row:
    gaps = m.gaps(served)

    def kind(wanted: str) -> float:
        return m.ttft(m.only(served, lambda s: s.arrival.kind == wanted), 99)

    return Row(
        {"load": load, "policy": policy},
        seed,
        {
            "tokens/s": throughput(served),
            "TBT P99 (ms)": 1e3 * m.percentile(gaps, 99),
            "TBT max (ms)": 1e3 * max(gaps),
            "TPOT P99 (ms)": 1e3 * m.tpot(served, 99),
            "short TTFT P99 (s)": kind("short"),
            "long TTFT P99 (s)": kind("long"),
        },
    )
