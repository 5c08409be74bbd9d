"""How many tokens of a prompt go into one step: three rules about prompts that share steps.

`most_of_one`: a long prompt leaves room for short ones, so that these need not queue behind it. A prompt is short if it
needs at most half of a step's prompt tokens. Half of the step is always left to the long one.

    only long, or only short      |==================== 512 ====================|
    short ones with 150 tokens    |========= long, at most 362 ========|  150   |
    short ones with 900 tokens    |=== long, at most 256 ==|   256 for short    |

`LongPromptGuard`: the settings `long_prefill_token_threshold` and `max_long_partial_prefills`.

`fill_to_edge`: a step costs what its bucket costs, so fill the bucket, and open no larger one for a few tokens.

    bucket edges   0        64            128                        256
    grow           |=========x------------>|       chunks grow to the edge of the bucket that is paid for
    trim           |=======================|<-x    a few tokens over an edge wait for the next step
"""

from collections.abc import Iterable

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.buckets import BucketTable
from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.sequence import Sequence

PROMPTS_SEEN = 32
"""Most waiting prompts that `most_of_one` is given, oldest first: thousands may wait, and every step asks."""
LONG_SHARE = 0.5
"""Share of a step's prompt tokens that is always left to a long prompt, and above which a prompt is long."""
TRIM_SHARE = 0.125
"""Trim when the tokens over an edge are at most this share of the way to the next one."""


def most_of_one(pending: Iterable[int], prompts: int) -> int:
    """Most tokens of one prompt in a step that has `prompts` tokens for all. `pending`: tokens left of each prompt."""
    short, any_long, half = 0, False, int(LONG_SHARE * prompts)
    for left in pending:
        if left > half:
            any_long = True
        else:
            short += left
    return max(prompts - short, half) if any_long else prompts


class LongPromptGuard:
    """For one step. A prompt with more than `long_prefill_token_threshold` tokens left is long: it takes at most that
    many tokens, and an equal share of the step if several are in progress; at most `max_long_partial_prefills` do."""

    def __init__(self, config: SchedulerConfig, begun: Iterable[Sequence], budget: int) -> None:
        self._threshold = config.long_prefill_token_threshold
        self._places = config.max_long_partial_prefills
        self._cap = budget
        if self._threshold is not None:
            longs = sum(self._is_long(sequence) for sequence in begun)
            self._cap = max(min(self._threshold, budget // max(longs, 1)), 1)

    def _is_long(self, sequence: Sequence) -> bool:
        return self._threshold is not None and sequence.num_uncomputed > self._threshold

    def allows(self, sequence: Sequence) -> bool:
        """Whether its prompt may take part in the step."""
        return self._places is None or self._places > 0 or not self._is_long(sequence)

    def cap(self, sequence: Sequence, chunk: int) -> int:
        return min(chunk, self._cap) if self._is_long(sequence) else chunk

    def takes(self, sequence: Sequence) -> None:
        """It takes part in the step."""
        if self._places is not None and self._is_long(sequence):
            self._places -= 1


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
