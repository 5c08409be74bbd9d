"""What every ordering is built from."""

from dataclasses import dataclass

from jaxserve.core.config import SchedulerConfig


@dataclass(frozen=True, slots=True)
class OrderingContext:
    config: SchedulerConfig
