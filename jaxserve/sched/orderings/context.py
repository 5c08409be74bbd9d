"""What every ordering is built from."""

from dataclasses import dataclass

from jaxserve.core.buckets import BucketTable
from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.tenants import Tenants
from jaxserve.costs.step_costs import StepCosts


@dataclass(frozen=True, slots=True)
class OrderingContext:
    config: SchedulerConfig
    buckets: BucketTable
    costs: StepCosts
    tenants: Tenants
