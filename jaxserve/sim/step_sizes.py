"""How large the steps of a workload are: the histogram that bucket sizes are fitted to.

The workload runs on a simulated engine whose buckets are as fine as sizes can be, so that what is counted is what the
requests and the policy ask for, and not what some set of buckets made of it.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable

from jaxserve.core.clock import VirtualClock
from jaxserve.core.config import EngineConfig
from jaxserve.core.plan import Bucket
from jaxserve.core.sections import BucketConfig
from jaxserve.core.step_record import StepRecord
from jaxserve.core.tenants import Tenants
from jaxserve.costs.model import CostModel, FormulaCost, StepFeatures
from jaxserve.sim.arrivals import Arrival
from jaxserve.sim.build import simulated_engine
from jaxserve.sim.drive import drive


class StepSizes:
    """An engine's observer: counts steps by (decode rows, prefill tokens)."""

    def __init__(self) -> None:
        self.steps: Counter[tuple[int, int]] = Counter()
        self.seconds = 0.0
        """When the last step ended, on the engine's clock."""

    def observe(self, record: StepRecord) -> None:
        plan = record.plan
        if plan is not None and plan.num_tokens:
            self.steps[len(plan.decodes), plan.num_tokens - len(plan.decodes)] += 1
            self.seconds = record.now


def step_sizes(
    config: EngineConfig,
    arrivals: Iterable[Arrival],
    cost: CostModel,
    prefill_multiple: int = 16,
    tenants: Tenants | None = None,
) -> StepSizes:
    """Run `arrivals` with decode buckets of every size and prefill buckets of every multiple.

    Without `tenants`: those of the file that the settings name.

    Raises:
      ConfigError: the settings cannot work.
    """
    seqs, tokens = config.scheduler.max_num_seqs, config.scheduler.max_num_batched_tokens
    decode = tuple(range(1, seqs + 1))
    fine = BucketConfig(
        decode_buckets=decode,
        mixed_decode_buckets=decode,
        prefill_buckets=tuple(sorted({*range(prefill_multiple, tokens, prefill_multiple), tokens})),
        prefill_rows=config.buckets.prefill_rows,
    )
    sizes = StepSizes()
    clock = VirtualClock()
    engine = simulated_engine(dataclasses.replace(config, buckets=fine), padded(cost), clock, tenants)
    engine.observers.append(sizes)
    for _ in drive(engine, clock, arrivals):
        pass
    return sizes


def padded(cost: CostModel) -> CostModel:
    """The same model with a step's padding charged: a written formula may count real tokens only."""
    return dataclasses.replace(cost, padded=True) if isinstance(cost, FormulaCost) else cost


class ProgramSeconds:
    """What one run of a program costs before its rows' contexts: (padded decode rows, padded prefill tokens) -> s."""

    def __init__(self, cost: CostModel, prefill_rows: int) -> None:
        self._cost = padded(cost)
        self._prefill_rows = prefill_rows

    def __call__(self, decode_rows: int, prefill_tokens: int) -> float:
        rows = self._prefill_rows if prefill_tokens else 0
        bucket = Bucket(decode_rows, prefill_tokens, rows, decode_rows + rows)
        return self._cost.seconds(StepFeatures(0, 0.0, 0, 0, 0, bucket))
