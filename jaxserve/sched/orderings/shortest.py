"""Shortest remaining prefill first, with ageing: a short prompt overtakes a long one, even one under way.

    key = queued at + log2(tokens left of the prompt) x shortest_ageing_s

Each doubling of the tokens left counts as `shortest_ageing_s` of waiting. By the logarithm, 50 tokens go well before
3,000, while 2,000 and 4,000 keep nearly the order in which they came: sorting the long ones among themselves would only
make the longest wait. No request overtakes one of T tokens that came more than log2(T) x `shortest_ageing_s` earlier.
"""

from math import log2

from jaxserve.core.sequence import Sequence
from jaxserve.sched.orderings.ordering import Ordering, OrderingContext


class ShortestPrefill(Ordering):
    def __init__(self, context: OrderingContext) -> None:
        self._ageing_s = context.config.shortest_ageing_s

    def key(self, sequence: Sequence) -> float:
        return sequence.queued_s + log2(max(sequence.num_uncomputed, 1)) * self._ageing_s
