"""Every form of a prompt that Python code is likely to hold, and clear words about the others."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.core.errors import InvalidRequest
from jaxserve.text.prompts import as_prompts, content_of


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("text", ["text"]),
        (["a", "b"], ["a", "b"]),
        ([], []),
        ([1, 2], [[1, 2]]),
        ((1, 2), [[1, 2]]),
        ([[1, 2], "a"], [[1, 2], "a"]),
        ([[]], [[]]),
        (np.array([], np.int32), [[]]),
        (np.zeros((0, 3), np.int32), []),
        (np.zeros((2, 0), np.int32), [[], []]),
        ({"prompt_token_ids": np.array([])}, [[]]),
        (np.array([1, 2]), [[1, 2]]),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (jnp.array([1, 2]), [[1, 2]]),
        ([np.array([1, 2]), jnp.array([3])], [[1, 2], [3]]),
        ([np.int32(1), jnp.int32(2)], [[1, 2]]),
        ({"prompt": "x"}, ["x"]),
        ([{"prompt": "x"}, {"prompt_token_ids": np.array([1, 2]), "cache_salt": "s"}], ["x", [1, 2]]),
    ],
    ids=repr,
)
def test_forms(prompts: object, expected: list[object]) -> None:
    found = [
        content if isinstance(content, str) else list(content) for content, _ in map(content_of, as_prompts(prompts))
    ]
    assert found == expected
    assert all(type(token) is int for prompt in found if not isinstance(prompt, str) for token in prompt)


def test_a_salt_comes_with_its_prompt() -> None:
    prompts = ["a", {"prompt": "a", "cache_salt": "one"}, {"prompt_token_ids": [1], "cache_salt": None}]
    assert [content_of(prompt)[1] for prompt in as_prompts(prompts)] == ["", "one", ""]


@pytest.mark.parametrize(
    "prompts",
    [
        None, 5, b"x", [None], np.zeros((1, 1, 1)), {"text": "x"}, [{"prompt": "x", "salt": "y"}], {"cache_salt": "x"},
        {"prompt": "x", "prompt_token_ids": [1]}, {"prompt": [1]}, {"prompt_token_ids": "x"},
        {"prompt": "x", "cache_salt": 5}, [["a", "b"]], [[1, [2]]], {"prompt_token_ids": [[1, 2]]},
    ],
    ids=repr,
)  # fmt: skip
def test_refused_by_type(prompts: object) -> None:
    with pytest.raises(InvalidRequest, match="give"):
        [content_of(prompt) for prompt in as_prompts(prompts)]
