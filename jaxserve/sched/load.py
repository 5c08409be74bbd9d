"""What policies and orderings may look at: the scheduler's state before a step."""

from collections.abc import Collection
from dataclasses import dataclass

from jaxserve.core.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Load:
    """Nothing here may be changed."""

    now: float
    running: Collection[Sequence]
    """In the order in which they were admitted."""
    waiting: Collection[Sequence]
    oldest_s: float
    """Since when the sequence that has waited longest waits; `now` if none does."""
    expects_more: bool
    """More requests may come: False at the end of an offline run."""
    kv_usage: float
    """Share of the KV blocks that sequences hold."""
