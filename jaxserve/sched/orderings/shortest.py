"""Shortest remaining prefill first, with ageing: a short prompt overtakes a long one, even one under way.

    key = queued at + tokens left of the prompt x shortest_ageing_s / 1000

A request is overtaken by nobody who came more than `shortest_ageing_s` for each 1,000 of its tokens later.
"""

from jaxserve.core.sequence import Sequence
from jaxserve.sched.orderings.context import OrderingContext
from jaxserve.sched.orderings.ordering import Ordering


class ShortestPrefill(Ordering):
    def __init__(self, context: OrderingContext) -> None:
        self._token_s = context.config.shortest_ageing_s / 1000.0

    def key(self, sequence: Sequence) -> float:
        return sequence.queued_s + sequence.num_uncomputed * self._token_s
