"""Which of the three sampling programs a step needs: decided on the host, from the requests' parameters alone.

A program that does less is faster, and gives every row it can express the very token that `FULL` would give it.
"""

from enum import IntEnum

from jaxserve.core.sampling import SamplingParams

MIN_TEMPERATURE = 1e-5
"""Anything cooler is greedy: logits divided by it would leave one token anyway, or overflow."""


class Variant(IntEnum):
    """What a sampling program can do: each can do what those before it can."""

    GREEDY = 0
    """The likeliest token, nothing else."""
    RANDOM = 1
    """Temperature only; rows of temperature 0 take the likeliest token."""
    FULL = 2
    """Every parameter, and log-probabilities."""


def variant_for(params: SamplingParams) -> Variant:
    """The smallest variant that can express a request's parameters."""
    if not _is_plain(params):
        return Variant.FULL
    if params.temperature < MIN_TEMPERATURE or params.top_k == 1:
        return Variant.GREEDY
    return Variant.FULL if params.top_k or params.top_p < 1.0 or params.min_p else Variant.RANDOM


def _is_plain(row: SamplingParams) -> bool:
    """Whether the logits are used as they are: truncation apart, nothing changes them and nobody asks for them."""
    return not (row.penalized or row.logit_bias or row.min_tokens or row.logprobs is not None)
