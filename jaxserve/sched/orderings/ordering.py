"""Who is next: an order over the sequences that wait, and over the prompts that are under way.

Within a tenant the smallest `key` comes first, then the earlier arrival. Between tenants the smallest `rank` comes
first, then the smaller key of their first sequences. A key may depend on the sequence and on what `refresh` has taken
in, and on nothing else: the queue keeps sequences sorted and asks again only when `epoch` has changed.
"""

from collections.abc import Collection
from typing import Protocol

from jaxserve.core.sequence import Sequence
from jaxserve.core.step_record import ScheduledStep
from jaxserve.sched.load import Load


class Ordering(Protocol):
    """One file each in this folder, one line in `ORDERINGS`."""

    epoch: int = 0
    """Goes up when keys have changed."""

    def key(self, sequence: Sequence) -> float: ...

    def rank(self, tenant: str) -> float:
        return 0.0

    def refresh(self, load: Load) -> None:
        """Called before a step is packed, for an order that depends on the load."""
        return None

    def returned(self, tenant: str, active: Collection[str]) -> None:
        """A tenant that had nothing waiting or running has a request again; `active`: the others that have."""
        return None

    def planned(self, step: ScheduledStep) -> None:
        """The step that was packed: for an order that counts who was served."""
        return None
