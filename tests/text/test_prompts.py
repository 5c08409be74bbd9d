"""Every form of a prompt that Python code is likely to hold, and clear words about the others."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.core.errors import InvalidRequest
from jaxserve.text.prompts import as_prompts, token_ids


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
        (np.array([1, 2]), [[1, 2]]),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (jnp.array([1, 2]), [[1, 2]]),
        ([np.array([1, 2]), jnp.array([3])], [[1, 2], [3]]),
        ([np.int32(1), jnp.int32(2)], [[1, 2]]),
    ],
    ids=repr,
)
def test_forms(prompts: object, expected: list[object]) -> None:
    found = [prompt if isinstance(prompt, str) else list(token_ids(prompt)) for prompt in as_prompts(prompts)]
    assert found == expected
    assert all(type(token) is int for prompt in found if not isinstance(prompt, str) for token in prompt)


@pytest.mark.parametrize("prompts", [None, 5, b"x", {"prompt": "x"}, [{"prompt": "x"}], [None], np.zeros((1, 1, 1))])
def test_refused_by_type(prompts: object) -> None:
    with pytest.raises(InvalidRequest, match="give"):
        [token_ids(prompt) for prompt in as_prompts(prompts)]
