"""A device made of a cost model: a step takes as long as the model says, and brings back tokens that mean nothing.

Steps run one after the other, as on a device: one that is submitted while another runs begins when that one ends.

    clock       submit 1      submit 2          wait 1        wait 2
    device      |--- step 1 ---------------------||--- step 2 -----|
"""

from dataclasses import dataclass

from jaxserve.core.clock import VirtualClock
from jaxserve.core.move_costs import NO_MOVES, MoveCosts
from jaxserve.core.plan import Masks, StepPlan, StepResult
from jaxserve.costs.model import CostModel, StepFeatures
from jaxserve.sim.tiers import SimTiers

TOKEN = 1
"""What every row samples: a sequence ends by its length only."""


class SimExecutor:
    def __init__(self, cost: CostModel, clock: VirtualClock, moves: MoveCosts = NO_MOVES) -> None:
        self._cost, self._clock = cost, clock
        self._tiers = SimTiers(moves)
        self._free_s = clock.now()
        self.steps = 0
        self.busy_s = 0.0
        self.real_tokens = 0
        self.padded_tokens = 0

    def submit(self, plan: StepPlan) -> "SimPending":
        now = self._clock.now()
        loaded_s = self._tiers.begin(plan, now)
        if not plan.bucket.tokens:
            self._free_s = max(self._free_s, loaded_s)
            return SimPending(self._clock, self._tiers, now if plan.moves else self._tiers.next_s(now), plan)
        seconds = self._cost.seconds(StepFeatures.of(plan))
        ends_s = max(self._free_s, now) + seconds
        self._free_s = max(ends_s, loaded_s)
        self.steps += 1
        self.busy_s += seconds
        self.real_tokens += plan.num_tokens
        self.padded_tokens += plan.bucket.tokens
        return SimPending(self._clock, self._tiers, ends_s, plan)

    def reset(self) -> None:
        """Nothing is kept of a sequence."""


@dataclass(frozen=True, slots=True)
class SimPending:
    clock: VirtualClock
    tiers: SimTiers
    ends_s: float
    plan: StepPlan

    def sample(self, masks: Masks | None = None) -> None:
        """Part of the step's time."""

    def wait(self) -> StepResult:
        self.clock.advance(max(self.ends_s - self.clock.now(), 0.0))
        return StepResult.of_one_token(self.plan, TOKEN, self.tiers.settled(self.clock.now()))
