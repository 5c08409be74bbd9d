"""Priority classes with ageing: a class further down is worth `priority_ageing_s` more seconds of waiting.

    key = queued at + class x priority_ageing_s

So a request is overtaken by nobody who came more than `priority_ageing_s` a class later: the lowest class waits, at
most, so much longer than first come, first served would have it.
"""

from jaxserve.core.sequence import Sequence
from jaxserve.sched.orderings.context import OrderingContext
from jaxserve.sched.orderings.ordering import Ordering


class PriorityWithAgeing(Ordering):
    def __init__(self, context: OrderingContext) -> None:
        self._ageing_s = context.config.priority_ageing_s

    def key(self, sequence: Sequence) -> float:
        return sequence.queued_s + sequence.priority * self._ageing_s
