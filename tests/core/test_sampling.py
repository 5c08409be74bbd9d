"""Every field of SamplingParams refuses what it cannot mean, by name."""

import math
from typing import Any

import numpy as np
import pytest

from jaxserve.core.errors import InvalidParameter
from jaxserve.core.sampling import SamplingParams

BAD = [
    ("max_tokens", -1), ("max_tokens", 1.5), ("max_tokens", True), ("min_tokens", -1), ("n", 0), ("n", 1000),
    ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("temperature", "1"),
    ("top_k", -2), ("top_p", 0.0), ("top_p", 1.1), ("top_p", math.nan), ("min_p", -0.1), ("min_p", 1.5),
    ("seed", 2**64), ("seed", 0.5), ("presence_penalty", 2.5), ("frequency_penalty", -2.5),
    ("repetition_penalty", 0.0), ("logit_bias", {1: 101.0}), ("logit_bias", {-1: 1.0}), ("logit_bias", {1: math.nan}),
    ("logit_bias", {"x": 1.0}), ("logit_bias", {"-1": 1.0}), ("logit_bias", {"²": 1.0}), ("logit_bias", {1.5: 1.0}),
    ("logit_bias", {True: 1.0}), ("logit_bias", {5: 1.0, "5": 2.0}),
    ("logit_bias", dict.fromkeys(range(301), 0.0)), ("stop", ("",)), ("stop", ("a",) * 17), ("stop_token_ids", (-1,)),
    ("stop_token_ids", tuple(range(65))), ("logprobs", -1), ("logprobs", 21), ("prompt_logprobs", 21),
    ("stop", 5), ("stop", b"x"), ("stop_token_ids", 5), ("logit_bias", [1, 2]), ("ignore_eos", "yes"),
    ("skip_special_tokens", None), ("include_stop_str_in_output", 1), ("temperature", np.float32("nan")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD, ids=str)
def test_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidParameter, match=name) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"stop": ["the end"] * 17}, "stop has 17 strings, and at most 16 are accepted: leave some out"),
        ({"stop_token_ids": range(65)}, "stop_token_ids has 65 token ids, and at most 64 are accepted: leave some out"),
        (
            {"logit_bias": dict.fromkeys(range(301), 0.0)},
            "logit_bias has 301 token ids, and at most 300 are accepted: leave some out",
        ),
        ({"stop": ["fine", ""]}, "stop = '' is not accepted: give non-empty strings"),
        ({"stop": ["x", "y" * 9000, 7]}, "stop = 7 is not accepted: give non-empty strings"),
        (
            {"stop_token_ids": ["z" * 9000]},
            f"stop_token_ids = 'z{'z' * 75}... is not accepted: give a whole number from 0",
        ),
    ],
)
def test_a_message_is_a_line_however_long_the_list(value: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        SamplingParams(**value)
    assert str(caught.value) == words and caught.value.param in value


def test_min_tokens_is_at_most_max_tokens() -> None:
    with pytest.raises(InvalidParameter, match=r"min_tokens = 4 .* at most max_tokens, which is 3"):
        SamplingParams(max_tokens=3, min_tokens=4)
    assert SamplingParams(max_tokens=None, min_tokens=4).min_tokens == 4


def test_spellings_are_folded_into_one() -> None:
    params = SamplingParams(stop="end", top_k=-1, stop_token_ids=[1, 2])  # type: ignore[arg-type]
    assert params.stop == ("end",) and params.top_k == 0 and params.stop_token_ids == (1, 2)


def test_a_bias_may_be_keyed_by_text_as_json_is() -> None:
    """So that a body of the HTTP API can be handed over as it is."""
    params = SamplingParams(logit_bias={"123": 1.0, 7: -2.0})  # type: ignore[dict-item]
    assert params.logit_bias == {123: 1.0, 7: -2.0}
    with pytest.raises(InvalidParameter, match=r"logit_bias = \{'5': 1.0, '05': 2.0\} is not .* each token once"):
        SamplingParams(logit_bias={"5": 1.0, "05": 2.0})  # type: ignore[dict-item]


def test_the_seed_that_means_none_in_vllm() -> None:
    assert SamplingParams(seed=-1).seed is None and SamplingParams(seed=-2).seed == -2


def test_lists_of_numpy_become_pythons_own() -> None:
    params = SamplingParams(
        stop_token_ids=np.array([1, 2]),  # type: ignore[arg-type]
        logit_bias={np.int64(5): np.float32(0.5)},  # type: ignore[dict-item]
    )
    assert params == SamplingParams(stop_token_ids=(1, 2), logit_bias={5: 0.5})
    assert [type(x) for x in (*params.stop_token_ids, *params.logit_bias, *params.logit_bias.values())] == [
        int, int, int, float,
    ]  # fmt: skip
    assert SamplingParams(stop_token_ids=[np.int32(7)]).stop_token_ids == (7,)  # type: ignore[arg-type]
    for bad in (np.array([[1]]), np.array([1.5]), np.array(5)):
        with pytest.raises(InvalidParameter, match="stop_token_ids"):
            SamplingParams(stop_token_ids=bad)  # type: ignore[arg-type]


def test_numbers_of_numpy_become_pythons_own() -> None:
    params = SamplingParams(temperature=np.float32(0.5), seed=np.int64(7), max_tokens=np.int32(3))  # type: ignore[arg-type]
    assert params == SamplingParams(temperature=0.5, seed=7, max_tokens=3)
    assert [type(value) for value in (params.temperature, params.seed, params.max_tokens)] == [float, int, int]
