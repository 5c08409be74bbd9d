"""What `bench.fidelity` measures: runs of the real engine to learn from, and between them those to be predicted."""

import argparse
import random
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.shared.rates import duration_s, throughput
from bench.stage import RealEngine
from jaxserve.commands.disturbance import QUIET, Disturbance
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import JaxserveError
from jaxserve.costs.fitted import Sample
from jaxserve.costs.model import CostModel
from jaxserve.metrics.distribution import percentile
from jaxserve.server.serve import settle_heap
from jaxserve.sim.arrivals import Arrival, lognormal, poisson, uniform
from jaxserve.sim.drive import Served
from jaxserve.sim.record import Record
from jaxserve.sim.record_reader import read_record
from jaxserve.sim.recorder import open_recording, record_engine

SETTINGS: dict[str, Any] = {
    "max_num_seqs": 16, "max_num_batched_tokens": 128, "num_blocks": 400, "max_model_len": 512,
    "decode_buckets": (4, 16), "mixed_decode_buckets": (16,), "prefill_buckets": (32, 128), "prefill_rows": 4,
    "enable_prefix_caching": False,
}  # fmt: skip
PARTS = 3
"""Runs of each kind in a round."""
LEARN_AT = (0.3, 0.15)
"""Loads at which it is learnt how much small steps cost, as shares of what saturation served."""
STEADY = 0.10
"""So far may the time of half a second's steps be from the prediction on a machine called steady."""
WINDOW_S = 0.5
Lengths = Callable[[random.Random], tuple[int, int]]


def all_lengths(rng: random.Random) -> tuple[int, int]:
    """What step times are learnt from: the whole range, evenly, as `jaxserve calibrate` does."""
    return uniform(rng, 4, 320), uniform(rng, 2, 96)


def other(rng: random.Random) -> tuple[int, int]:
    """What is predicted: seven short prompts, three long ones."""
    prompt = uniform(rng, 4, 48) if rng.random() < 0.7 else uniform(rng, 150, 300)
    return prompt, lognormal(rng, 3.0, 0.7, 4, 64)


def requests(seed: int, count: int, lengths: Lengths, rate: float | None) -> list[Arrival]:
    """`rate` None: all at once."""
    rng = random.Random(seed)
    times = poisson(rng, rate) if rate else None
    return [Arrival(next(times) if times else 0.0, *lengths(rng)) for _ in range(count)]


def paced(arrivals: list[Arrival], tokens_per_s: float) -> list[Arrival]:
    """The same pattern, so much faster or slower that so many output tokens a second are asked for: of a few hundred
    drawn requests the mean length and the rate are off by a tenth, and 0.8 of what the engine can do would be 0.7 or
    0.99 of it."""
    slower = sum(a.output_tokens for a in arrivals) / arrivals[-1].at_s / tokens_per_s
    return [replace(a, at_s=a.at_s * slower) for a in arrivals]


class Recorded:
    """The engine on this machine. Every run is recorded."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from jaxserve.llm import LLM

        self._llm = LLM(config=EngineConfig.from_settings(**settings))
        self._ready = RealEngine(self._llm)

    def warm_up(self, arrivals: list[Arrival]) -> None:
        self._ready.warm_up(arrivals)

    def run(self, arrivals: list[Arrival]) -> tuple[list[Served], Record]:
        """Serve them and record it."""
        engine = self._ready.engine
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "record.jsonl"
            settle_heap()  # as the server does
            recorder = record_engine(engine, open_recording(path), self._llm.config, self._llm.tenants)
            served = [_well(one) for one in self._ready.serve(arrivals)]
            engine.observers.remove(recorder)
            recorder.close()
            return served, read_record(path)


def _well(served: Served) -> Served:
    if served.refused or served.failed:
        raise JaxserveError(f"request {served.number} was not served: {served.refused or served.failed} {served.why}")
    return served


@dataclass(slots=True)
class Part:
    """One run: what was asked, what came of it, and its record."""

    arrivals: list[Arrival]
    served: list[Served]
    record: Record


@dataclass(slots=True)
class Round:
    """What one round measured, before anything is predicted."""

    learnt: list[Sample]
    saturated: list[Part]
    loaded: list[Part]
    others: float | None
    """Share of the processors that other processes took meanwhile."""


def quiet_round(real: Recorded, given: argparse.Namespace, seed: int) -> Round:
    """The first round that nobody disturbed, or the quietest of `--tries`."""
    best: Round | None = None
    for i in range(given.tries):
        found = measure(real, given, seed)
        if best is None or (found.others or 0.0) < (best.others or 0.0):
            best = found
        if best.others is None or best.others <= QUIET:
            break
        again = "again" if i + 1 < given.tries else "no more tries"
        print(f"other processes took {found.others:.0%} of the processors: {again}", file=sys.stderr)
    assert best is not None
    return best


def measure(real: Recorded, given: argparse.Namespace, seed: int) -> Round:
    """Runs to learn from before, between and after those that are to be predicted, all at once (S) and at the load (L):

    learn  S  learn  S  learn  S  learn  L  learn  L  learn  L  learn
    """
    learnt: list[Sample] = []

    def learn(number: int, rate: float | None = None) -> None:
        _, record = real.run(requests(seed + number, given.requests // 2, all_lengths, rate))
        learnt.extend((step.features, step.seconds) for step in record.steps)

    def run(arrivals: list[Arrival]) -> Part:
        return Part(arrivals, *real.run(arrivals))

    disturbance = Disturbance()
    saturated: list[Part] = []
    for i in range(PARTS):
        learn(i)
        saturated.append(run(requests(seed + 20 + i, given.requests, other, None)))
    full = [part.served for part in saturated]
    capacity, tokens_per_s = sum(map(len, full)) / duration_s(*full), throughput(*full)
    loaded: list[Part] = []
    for i in range(PARTS):
        learn(PARTS + i, LEARN_AT[i % len(LEARN_AT)] * capacity)
        drawn = requests(seed + 40 + i, 2 * given.requests, other, capacity)
        loaded.append(run(paced(drawn, given.load * tokens_per_s)))
    learn(2 * PARTS)
    return Round(learnt, saturated, loaded, disturbance.share())


def drift(cost: CostModel, parts: Iterable[Part]) -> tuple[float, float] | None:
    """How the machine's own speed moved within the runs: the 5th and 95th percentile, over half seconds, of the time
    that steps took over what `cost` says of them. None: no half second had steps enough.

    A shared machine slows down by a third for a second or two and no other process shows it; waits near saturation grow
    by far more than that."""
    ratios: list[float] = []
    for part in parts:
        windows: dict[int, list[tuple[float, float]]] = {}
        for step in part.record.steps:
            windows.setdefault(int(step.planned_s / WINDOW_S), []).append((step.seconds, cost.seconds(step.features)))
        ratios += [sum(took for took, _ in window) / sum(said for _, said in window)
                   for window in windows.values() if len(window) > 5]  # fmt: skip
    if not ratios:
        return None
    return percentile(ratios, 5), percentile(ratios, 95)
