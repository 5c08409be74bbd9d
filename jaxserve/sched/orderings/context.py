"""What every ordering is built from."""

from dataclasses import dataclass

from jaxserve.core.config import SchedulerConfig
from jaxserve.sched.step_costs import StepCosts


@dataclass(frozen=True, slots=True)
class OrderingContext:
    config: SchedulerConfig
    costs: StepCosts
