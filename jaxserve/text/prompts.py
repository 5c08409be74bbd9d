"""The forms in which a prompt may come from Python: text, or token ids as a list or as an array of NumPy or JAX.

Either may stand in a mapping, in vLLM's words, beside what belongs to this prompt alone:

    {"prompt": "Enter HAMLET.", "cache_salt": "tenant-7"}      {"prompt_token_ids": [5, 17], "cache_salt": "tenant-7"}
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from jaxserve.core.errors import EmptyPrompt, InvalidRequest

Prompt = str | Sequence[int] | Mapping[str, Any]

_CONTENT = ("prompt", "prompt_token_ids")


def as_prompts(prompts: Any) -> list[Prompt]:
    """One prompt, or several, as a list. An array of one axis is a prompt, one of two axes a prompt a row.

    Raises:
      InvalidRequest: it is neither.
    """
    if isinstance(prompts, str | Mapping) or _is_token_ids(prompts):
        return [cast(Prompt, prompts)]
    if isinstance(prompts, bytes) or not hasattr(prompts, "__iter__") or not hasattr(prompts, "__len__"):
        raise InvalidRequest(
            f"prompts is a {type(prompts).__name__}: give text, a list of token ids, or a list of either",
            "prompt",
        )
    return list(prompts)


def content_of(prompt: Prompt) -> tuple[str | Sequence[int], str]:
    """(text or token ids, cache salt); the salt is "" where the prompt brings none.

    Raises:
      EmptyPrompt: a text of no characters, though a tokenizer that begins every text would make a prompt of it.
      InvalidRequest: a mapping with other keys than these, or not one flat row of ids.
    """
    if text_of(prompt) == "":
        raise EmptyPrompt
    if isinstance(prompt, str):
        return prompt, ""
    if not isinstance(prompt, Mapping):
        return token_ids(prompt), ""
    given = [name for name in _CONTENT if name in prompt]
    unknown = [name for name in prompt if name not in (*_CONTENT, "cache_salt")]
    if len(given) != 1 or unknown:
        wrong = f"has {unknown[0]!r}" if unknown else f"has {len(given)} of prompt and prompt_token_ids"
        raise InvalidRequest(
            f"a prompt {wrong}: give prompt (text) or prompt_token_ids, and, where wanted, cache_salt", "prompt"
        )
    content, salt = prompt[given[0]], prompt.get("cache_salt") or ""
    if not isinstance(salt, str):
        raise InvalidRequest(f"cache_salt is a {type(salt).__name__}: give text", "cache_salt")
    if given[0] == "prompt":
        if not isinstance(content, str):
            raise InvalidRequest(f"prompt is a {type(content).__name__}: give text, or prompt_token_ids", "prompt")
        return content, salt
    return token_ids(content), salt


def text_of(prompt: Prompt) -> str | None:
    """Its text; None where it is token ids."""
    content = prompt.get("prompt") if isinstance(prompt, Mapping) else prompt
    return content if isinstance(content, str) else None


def token_ids(prompt: Any) -> Sequence[Any]:
    """The ids as Python's own integers where they are integers at all; `engine.limits` checks which exist.

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
    if all(type(token) is int for token in ids):
        return ids
    if any(isinstance(token, str | list | tuple | Mapping) for token in ids):
        raise InvalidRequest("several prompts where one is taken: give text, or one list of token ids", "prompt")
    return [_plain(token) for token in ids]


def _is_token_ids(prompts: Any) -> bool:
    if hasattr(prompts, "ndim"):
        return prompts.ndim == 1
    return isinstance(prompts, list | tuple) and bool(prompts) and _is_number(cast(Sequence[Any], prompts)[0])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or getattr(value, "ndim", None) == 0


def _plain(token: Any) -> Any:
    return token.item() if getattr(token, "ndim", None) == 0 else token
