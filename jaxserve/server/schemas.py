"""`POST /generate`: what a body may hold, and what an answer holds.

Every field is checked; an unknown one is refused by name, so that a misspelt parameter never passes for a default.
"""

import dataclasses
import json
from typing import Any

from jaxserve.core.errors import InvalidParameter, InvalidRequest
from jaxserve.core.plan import TokenLogprobs
from jaxserve.core.sampling import SamplingParams
from jaxserve.engine.collect import CompletionOutput, RequestOutput
from jaxserve.engine.outputs import SequenceOutput

_SAMPLING = {f.name for f in dataclasses.fields(SamplingParams)}
_OTHER = {"prompt", "prompt_token_ids", "stream", "cache_salt", "request_id"}


@dataclasses.dataclass(frozen=True, slots=True)
class GenerateBody:
    prompt: str | list[int]
    params: SamplingParams
    stream: bool
    cache_salt: str
    request_id: str | None

    @classmethod
    def parse(cls, raw: bytes) -> "GenerateBody":
        """Raises InvalidRequest (with the field's name) for whatever is not as documented."""
        body = _object(raw)
        unknown = sorted(set(body) - _SAMPLING - _OTHER)
        if unknown:
            raise InvalidRequest(
                f"unknown field {unknown[0]!r}; known: {', '.join(sorted(_SAMPLING | _OTHER))}", unknown[0]
            )
        given = {name: value for name, value in body.items() if name in _SAMPLING and value is not None}
        given |= {name: None for name in ("max_tokens",) if name in body and body[name] is None}
        return cls(
            prompt=_prompt(body),
            params=_params(given),
            stream=_typed(body, "stream", bool, False),
            cache_salt=_typed(body, "cache_salt", str, ""),
            request_id=_typed(body, "request_id", str, None),
        )


def _object(raw: bytes) -> dict[str, Any]:
    def no_constant(name: str) -> None:
        raise InvalidRequest(f"{name} is not JSON: give a number")

    try:
        body = json.loads(raw, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        if isinstance(error, InvalidRequest):
            raise
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {type(body).__name__}")
    return body


def _prompt(body: dict[str, Any]) -> str | list[int]:
    if ("prompt" in body) == ("prompt_token_ids" in body):
        raise InvalidRequest("give one of prompt (text or token ids) and prompt_token_ids", "prompt")
    name = "prompt" if "prompt" in body else "prompt_token_ids"
    prompt = body[name]
    if isinstance(prompt, str) and name == "prompt":
        return prompt
    if isinstance(prompt, list) and all(type(token) is int for token in prompt):
        return prompt
    raise InvalidRequest(f"{name} must be {'text or ' if name == 'prompt' else ''}a list of token ids", name)


def _params(given: dict[str, Any]) -> SamplingParams:
    for name in ("stop", "stop_token_ids"):
        if isinstance(given.get(name), list):
            given[name] = tuple(given[name])
        elif name in given and not (name == "stop" and isinstance(given[name], str)):
            raise InvalidParameter(name, given[name], "a list" if name != "stop" else "a string or a list of strings")
    if "logit_bias" in given:
        bias = given["logit_bias"]
        if not isinstance(bias, dict) or not all(key.isdecimal() for key in bias):
            raise InvalidParameter("logit_bias", bias, "an object from token ids to numbers")
        given["logit_bias"] = {int(token): value for token, value in bias.items()}
    for name in ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens"):
        _typed(given, name, bool, None)
    return SamplingParams(**given)


def _typed(body: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise InvalidParameter(name, value, {"bool": "true or false", "str": "a string"}[kind.__name__])
    return value


# --- answers --------------------------------------------------------------------------------------------------


def whole(output: RequestOutput, model: str) -> dict[str, Any]:
    """The answer to a request without `stream`."""
    answer: dict[str, Any] = {
        "id": output.request_id,
        "model": model,
        "choices": [_choice(completion) for completion in output.outputs],
        "usage": usage(output),
    }
    if output.prompt_logprobs is not None:
        answer["prompt_logprobs"] = [None if entry is None else _logprob(entry) for entry in output.prompt_logprobs]
    return answer


def piece(output: SequenceOutput) -> dict[str, Any]:
    """One event of a stream: what is new of one choice."""
    event: dict[str, Any] = {
        "id": output.request_id,
        "index": output.index,
        "text": output.text,
        "token_ids": output.tokens,
        "finish_reason": output.finish_reason,
        "stop_reason": output.stop_reason,
    }
    if output.logprobs:
        event["logprobs"] = [_logprob(entry) for entry in output.logprobs]
    if output.prompt_logprobs:
        event["prompt_logprobs"] = [_logprob(entry) for entry in output.prompt_logprobs]
    if output.error is not None:
        event["error"] = output.error
    return event


def usage(output: RequestOutput) -> dict[str, Any]:
    generated = sum(len(completion.token_ids) for completion in output.outputs)
    prompt = len(output.prompt_token_ids)
    cached = output.metrics.cached_tokens if output.metrics else 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _choice(completion: CompletionOutput) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": completion.index,
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
    }
    if completion.logprobs is not None:
        choice["logprobs"] = [_logprob(entry) for entry in completion.logprobs]
    return choice


def _logprob(entry: TokenLogprobs) -> dict[str, Any]:
    top = [{"token_id": token, "logprob": logprob} for token, logprob in entry.top]
    return {"token_id": entry.token, "logprob": entry.logprob, "rank": entry.rank, "top": top}
