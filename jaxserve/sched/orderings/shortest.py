"""Shortest remaining prefill first, with ageing: a short prompt overtakes a long one, even one under way.

    key = queued at + log2(tokens left of the prompt) x shortest_ageing_s

Each doubling of what is left is worth so much waiting. By the logarithm, 50 tokens go well before 3,000, while 2,000
and 4,000 keep nearly the order in which they came: sorting the long ones among themselves would only make the longest
wait. A request is overtaken by nobody who came later by more than log2 of its tokens times `shortest_ageing_s`.
"""

from math import log2

from jaxserve.core.sequence import Sequence
from jaxserve.sched.orderings.context import OrderingContext
from jaxserve.sched.orderings.ordering import Ordering


class ShortestPrefill(Ordering):
    def __init__(self, context: OrderingContext) -> None:
        self._ageing_s = context.config.shortest_ageing_s

    def key(self, sequence: Sequence) -> float:
        return sequence.queued_s + log2(max(sequence.num_uncomputed, 1)) * self._ageing_s
