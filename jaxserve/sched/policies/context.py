"""What every policy is built from."""

from dataclasses import dataclass

from jaxserve.core.config import SchedulerConfig
from jaxserve.sched.buckets import BucketTable


@dataclass(frozen=True, slots=True)
class PolicyContext:
    config: SchedulerConfig
    buckets: BucketTable
