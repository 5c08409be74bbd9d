"""The forms in which a prompt may come from Python: text, or token ids as a list or as an array of NumPy or JAX."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from jaxserve.core.errors import InvalidRequest

Prompt = str | Sequence[int]


def as_prompts(prompts: Any) -> list[Prompt]:
    """One prompt, or several, as a list. An array of one axis is a prompt, one of two axes a prompt a row.

    Raises:
      InvalidRequest: it is neither.
    """
    if isinstance(prompts, str) or _is_token_ids(prompts):
        return [cast(Prompt, prompts)]
    if isinstance(prompts, Mapping | bytes) or not hasattr(prompts, "__iter__") or not hasattr(prompts, "__len__"):
        raise InvalidRequest(
            f"prompts is a {type(prompts).__name__}: give text, a list of token ids, or a list of either",
            "prompt",
        )
    return list(prompts)


def token_ids(prompt: Any) -> Sequence[Any]:
    """The ids as Python's own integers where they are integers at all; which of them exist is checked on admission.

    Raises:
      InvalidRequest: not one flat row of ids.
    """
    if hasattr(prompt, "tolist"):
        if getattr(prompt, "ndim", 1) != 1:
            raise InvalidRequest(f"token ids have the shape {prompt.shape}: give one row a prompt", "prompt")
        return prompt.tolist()
    if not isinstance(prompt, list | tuple):
        raise InvalidRequest(f"a prompt is a {type(prompt).__name__}: give text or a list of token ids", "prompt")
    ids = cast(Sequence[Any], prompt)
    return ids if all(type(token) is int for token in ids) else [_plain(token) for token in ids]


def _is_token_ids(prompts: Any) -> bool:
    if hasattr(prompts, "ndim"):
        return prompts.ndim == 1
    return isinstance(prompts, list | tuple) and bool(prompts) and _is_number(cast(Sequence[Any], prompts)[0])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or getattr(value, "ndim", None) == 0


def _plain(token: Any) -> Any:
    return token.item() if getattr(token, "ndim", None) == 0 else token
