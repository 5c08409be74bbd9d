"""The mix of short and long prompts that are to be computed: how much of a step a long one may take.

A prompt is short if it needs at most half of what one step has for prompts, and long if it needs more. While both are
there, a long one leaves room for the short ones, which then need not queue behind it. Half of the step is always left
to it, so that no short one is cut.

    only long, or only short      |==================== 512 ====================|
    short ones with 150 tokens    |========= long, at most 362 ========|  150   |
    short ones with 900 tokens    |=== long, at most 256 ==|   256 for short    |
"""

from collections.abc import Iterable
from itertools import islice

from jaxserve.sched.load import Load

SEEN = 32
"""Of those that wait only so many are looked at, oldest first: thousands may wait, and no step touches them all."""
LEAST_SHARE = 0.5
"""What is left to a long prompt of a step's prompt tokens."""


def most_of_one(load: Load, prompts: int, places: int) -> int:
    """Tokens of one prompt in a step that has `prompts` tokens for all of them, while `places` more may join."""
    pending = [s.num_uncomputed for s in load.running if not s.decoding]
    pending += [s.num_uncomputed for s in islice(load.waiting, min(places, SEEN))]
    return most_of_these(pending, prompts)


def most_of_these(pending: Iterable[int], prompts: int) -> int:
    """The same where so many tokens are left of each prompt."""
    short, longs, half = 0, False, int(LEAST_SHARE * prompts)
    for left in pending:
        if left > half:
            longs = True
        else:
            short += left
    return max(prompts - short, half) if longs else prompts
