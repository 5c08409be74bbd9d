"""What metrics cost: the time inside observers, as a share of the steps' time. `python -m bench.metrics_cost`

The same steps are also told to `prometheus_client`'s own counters and histograms, observation by observation, to show
what they would cost. The embedded model has the shortest steps of all, so that the share is the largest.
"""

import argparse
import time

from prometheus_client import CollectorRegistry, Counter, Histogram

from jaxserve import LLM, SamplingParams
from jaxserve.core.events import TokenSampled
from jaxserve.core.step_record import Observer, StepRecord
from jaxserve.metrics.catalog import SHORT_SECONDS
from jaxserve.metrics.engine_metrics import EngineMetrics


class Timed:
    """Another observer, and how long it took altogether."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.seconds = 0.0

    def observe(self, record: StepRecord) -> None:
        began = time.perf_counter()
        self._observer.observe(record)
        self.seconds += time.perf_counter() - began


class Plain:
    """The token metrics only, the usual way: one library call an observation."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._tokens = Counter("tokens", "", ["model", "tenant"], registry=registry)
        self._gaps = Histogram("gaps", "", ["model", "tenant"], registry=registry, buckets=SHORT_SECONDS)
        self._last: dict[object, float] = {}

    def observe(self, record: StepRecord) -> None:
        for event in record.events:
            if type(event) is TokenSampled:
                tenant = event.sequence.tenant
                self._tokens.labels("m", tenant).inc()
                if (before := self._last.get(event.sequence)) is not None:
                    self._gaps.labels("m", tenant).observe(record.now - before)
                self._last[event.sequence] = record.now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=192)
    parser.add_argument("--max-num-seqs", type=int, default=64)
    given = parser.parse_args()
    llm = LLM("embedded", max_num_seqs=given.max_num_seqs, progress=False)
    ours, plain = Timed(EngineMetrics()), Timed(Plain())
    params = SamplingParams(max_tokens=96, temperature=0.0, ignore_eos=True)
    prompts = [[1 + (i * 31 + j) % 500 for j in range(32)] for i in range(given.requests)]
    llm.generate(prompts[:64], params)
    llm.engine.observers += [ours, plain]
    steps = llm.engine.scheduler.costs.busy_s
    began = time.perf_counter()
    llm.generate(prompts, params)
    wall, count = time.perf_counter() - began, llm.engine.scheduler.costs
    num_steps = sum(ours._observer.counts.counters["steps"].values())  # type: ignore[attr-defined]
    print(f"{num_steps:.0f} steps in {wall:.2f} s ({count.busy_s - steps:.2f} s under way)")
    for name, timed in (("all metrics of jaxserve", ours), ("tokens and gaps by prometheus_client", plain)):
        print(f"{name}: {timed.seconds / num_steps * 1e6:.1f} us a step, {timed.seconds / wall:.2%} of the time")
