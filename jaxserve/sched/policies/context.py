"""What every policy is built from."""

from dataclasses import dataclass

from jaxserve.core.buckets import BucketTable
from jaxserve.core.sections import SchedulerConfig
from jaxserve.costs.step_costs import StepCosts


@dataclass(frozen=True, slots=True)
class PolicyContext:
    config: SchedulerConfig
    buckets: BucketTable
    costs: StepCosts
