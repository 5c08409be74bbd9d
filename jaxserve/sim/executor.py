"""A device made of a cost model: a step takes as long as the model says, and brings back tokens that mean nothing.

Steps run one after the other, as on a device: one that is submitted while another runs begins when that one ends.

    clock       submit 1      submit 2          wait 1        wait 2
    device      |--- step 1 ---------------------||--- step 2 -----|
"""

from dataclasses import dataclass

import numpy as np

from jaxserve.core.clock import VirtualClock
from jaxserve.core.plan import StepPlan, StepResult
from jaxserve.sched.cost_model import CostModel, StepFeatures

TOKEN = 1
"""What every row samples: a sequence ends by its length only."""


class SimExecutor:
    def __init__(self, cost: CostModel, clock: VirtualClock) -> None:
        self._cost, self._clock = cost, clock
        self._free_s = clock.now()
        self.steps = 0
        self.busy_s = 0.0
        self.real_tokens = 0
        self.padded_tokens = 0

    def submit(self, plan: StepPlan) -> "SimPending":
        seconds = self._cost.seconds(StepFeatures.of(plan))
        self._free_s = max(self._free_s, self._clock.now()) + seconds
        self.steps += 1
        self.busy_s += seconds
        self.real_tokens += plan.num_tokens
        self.padded_tokens += plan.bucket.tokens
        return SimPending(self._clock, self._free_s, len(plan.decodes) + len(plan.prefills))

    def reset(self) -> None:
        """Nothing is kept of a sequence."""


@dataclass(frozen=True, slots=True)
class SimPending:
    clock: VirtualClock
    ends_s: float
    rows: int

    def wait(self) -> StepResult:
        self.clock.advance(max(self.ends_s - self.clock.now(), 0.0))
        return StepResult(np.full(self.rows, TOKEN, np.int32))
