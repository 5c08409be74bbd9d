"""Which of the three sampling programs a step needs: decided on the host, from the requests' parameters alone.

A program that does less is faster, and gives every row it can express the very token that `FULL` would give it.
"""

from collections.abc import Iterable
from enum import Enum

from jaxserve.core.sampling import SamplingParams

MIN_TEMPERATURE = 1e-5
"""Anything cooler is greedy: logits divided by it would leave one token anyway, or overflow."""


class Variant(Enum):
    """What a sampling program can do."""

    GREEDY = "greedy"
    """The likeliest token, nothing else."""
    RANDOM = "random"
    """Temperature only; rows of temperature 0 take the likeliest token."""
    FULL = "full"
    """Every parameter, and log-probabilities."""


def choose_variant(params: Iterable[SamplingParams]) -> Variant:
    """The smallest variant that can express every row of a step."""
    needed = Variant.GREEDY
    for row in params:
        if not _is_plain(row):
            return Variant.FULL
        if row.temperature < MIN_TEMPERATURE or row.top_k == 1:
            continue
        if row.top_k or row.top_p < 1.0 or row.min_p:
            return Variant.FULL
        needed = Variant.RANDOM
    return needed


def _is_plain(row: SamplingParams) -> bool:
    """Whether the logits are used as they are: truncation apart, nothing changes them and nobody asks for them."""
    return not (row.penalized or row.logit_bias or row.min_tokens or row.logprobs is not None)
