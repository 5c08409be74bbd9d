"""What every policy is built from."""

from dataclasses import dataclass

from jaxserve.core.sections import SchedulerConfig
from jaxserve.sched.buckets import BucketTable
from jaxserve.sched.step_costs import StepCosts


@dataclass(frozen=True, slots=True)
class PolicyContext:
    config: SchedulerConfig
    buckets: BucketTable
    costs: StepCosts
