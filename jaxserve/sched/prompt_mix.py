"""The mix of short and long prompts that are to be computed: how much of a step a long one may take.

A prompt is long if it needs more than what one step has for prompts, and short if not. While both are there, a long one
leaves room for the short ones, which then need not queue behind it; half of the step is always left to it.

    only long, or only short      |==================== 512 ====================|
    short ones with 150 tokens    |========= long, at most 362 ========|  150   |
    short ones with 900 tokens    |=== long, at most 256 ==|   256 for short    |
"""

from itertools import islice

from jaxserve.sched.load import Load

SEEN = 32
"""Of those that wait only so many are looked at, oldest first: thousands may wait, and no step touches them all."""
LEAST_SHARE = 0.5
"""What is left to a long prompt of a step's prompt tokens."""


def most_of_one(load: Load, prompts: int, places: int) -> int:
    """Tokens of one prompt in a step that has `prompts` tokens for all of them, while `places` more may join."""
    short, longs = 0, False
    pending = [s.num_uncomputed for s in load.running if not s.decoding]
    pending += [s.num_uncomputed for s in islice(load.waiting, min(places, SEEN))]
    for left in pending:
        if left > prompts:
            longs = True
        else:
            short += left
    return max(prompts - short, int(LEAST_SHARE * prompts)) if longs else prompts
