"""An order over the sequences that wait and over the prompts in progress: which is next.

Within a tenant the smallest `key` comes first, then the earlier arrival. Between tenants the smallest `rank` comes
first, then the smaller key of their first sequences. A key may depend on the sequence and on what `refresh` was given,
and on nothing else: the queue keeps sequences sorted and asks for keys again only when `epoch` has changed.
"""

from collections.abc import Collection
from dataclasses import dataclass
from math import inf
from typing import Protocol

from jaxserve.core.buckets import BucketTable
from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.sequence import Sequence
from jaxserve.core.step_record import ScheduledStep
from jaxserve.core.tenants import Tenants
from jaxserve.costs.step_costs import StepCosts
from jaxserve.sched.policies.policy import Load


@dataclass(frozen=True, slots=True)
class OrderingContext:
    """What every ordering is made from."""

    config: SchedulerConfig
    buckets: BucketTable
    costs: StepCosts
    tenants: Tenants


class Ordering(Protocol):
    """One file each in this folder, one line in `ORDERINGS`."""

    epoch: int = 0
    """Goes up when keys have changed."""

    def key(self, sequence: Sequence) -> float: ...

    def rank(self, tenant: str) -> float:
        return 0.0

    def lead(self, tenant: str, other: str) -> float:
        """About how many prompt tokens a tenant is served before another one is next, by their ranks alone."""
        return inf

    def refresh(self, load: Load) -> None:
        """Called before a step is packed, for an order that depends on the load."""
        return None

    def reactivated(self, tenant: str, waiting: Collection[str]) -> None:
        """A tenant of which nothing waited has a waiting sequence again. `waiting`: the other tenants that have."""
        return None

    def held_back(self, tenants: Collection[str], waiting: Collection[str]) -> None:
        """Limits of their own kept these tenants out of a step. `waiting`: all tenants with a waiting sequence."""
        return None

    def planned(self, step: ScheduledStep) -> None:
        """The step that was packed, for an order that counts the service of each tenant."""
        return None
