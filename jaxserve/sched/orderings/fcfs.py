"""First come, first served. A preempted sequence keeps its place."""

from jaxserve.core.sequence import Sequence
from jaxserve.sched.orderings.ordering import Ordering, OrderingContext


class FirstCome(Ordering):
    def __init__(self, context: OrderingContext) -> None:
        pass

    def key(self, sequence: Sequence) -> float:
        return 0.0
