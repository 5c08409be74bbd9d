"""Priority classes with ageing: a class further down is worth `priority_ageing_s` more seconds of waiting.

    key = queued at + class x priority_ageing_s

No request overtakes one that is p classes lower and came more than p x `priority_ageing_s` earlier. That bounds how
much longer the lowest class waits than under first come, first served.
"""

from jaxserve.core.sequence import Sequence
from jaxserve.sched.orderings.ordering import Ordering, OrderingContext


class PriorityWithAgeing(Ordering):
    def __init__(self, context: OrderingContext) -> None:
        self._ageing_s = context.config.priority_ageing_s

    def key(self, sequence: Sequence) -> float:
        return sequence.queued_s + sequence.priority * self._ageing_s
