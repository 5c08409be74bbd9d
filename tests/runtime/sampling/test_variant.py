"""The smallest program that can express a step's parameters is chosen."""

import pytest

from jaxserve.core.sampling import SamplingParams
from jaxserve.runtime.sampling.variant import Variant, variant_for

GREEDY = SamplingParams(temperature=0.0)
RANDOM = SamplingParams(temperature=0.7)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ([], Variant.GREEDY),
        ([GREEDY], Variant.GREEDY),
        ([RANDOM], Variant.RANDOM),
        ([GREEDY, RANDOM], Variant.RANDOM),
        ([SamplingParams(temperature=1e-6)], Variant.GREEDY),
        ([SamplingParams(top_k=1, top_p=0.5)], Variant.GREEDY),
        ([SamplingParams(temperature=0.0, top_p=0.5, top_k=9, min_p=0.2)], Variant.GREEDY),
        ([RANDOM, SamplingParams(temperature=0.0, logprobs=0)], Variant.FULL),
        *(
            ([GREEDY, SamplingParams(**{name: value})], Variant.FULL)
            for name, value in {
                "top_k": 5,
                "top_p": 0.9,
                "min_p": 0.1,
                "presence_penalty": 0.1,
                "frequency_penalty": -0.1,
                "repetition_penalty": 1.1,
                "logit_bias": {1: 1.0},
                "min_tokens": 2,
                "logprobs": 3,
            }.items()
        ),
    ],
)
def test_choice(params: list[SamplingParams], expected: Variant) -> None:
    """The step's is the largest of its rows'."""
    assert max(map(variant_for, params), default=Variant.GREEDY) is expected
