"""Packing that knows the buckets: a step costs what its bucket costs, so fill it, and open no larger one for little.

bucket edges   0        64            128                        256
grow           |=========x------------>|       chunks grow to the edge they pay for anyway
trim           |=======================|<-x    a few tokens over an edge wait for the next step
"""

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.buckets import BucketTable
from jaxserve.core.sequence import Sequence

TRIM_SHARE = 0.125
"""Trim when the tokens over an edge are at most this share of the way to the next one."""


def fill_to_edge(lengths: dict[Sequence, int], budget: int, buckets: BucketTable, blocks: BlockManager) -> None:
    """Change chunk lengths in place so that their sum meets a bucket's edge, where it can.

    `budget`: tokens that may still be added. Chunks grow in order; the last one is trimmed, never to nothing.
    """
    total = sum(lengths.values())
    lower, upper = buckets.prefill_edges(total)
    spare = min(upper - total, budget)
    for sequence, length in lengths.items():
        more = min(spare, sequence.num_uncomputed - length)
        if more > 0 and blocks.grow(sequence, sequence.num_computed + length + more):
            lengths[sequence] = length + more
            spare -= more
            total += more
    over = total - lower
    last = next(reversed(lengths))
    if lower and 0 < over <= TRIM_SHARE * (upper - lower) and over < lengths[last]:
        lengths[last] -= over
