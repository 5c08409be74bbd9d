"""The fields that every generating request shares: OpenAI's, and those that vLLM's clients send beside them."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, WithJsonSchema

from jaxserve.core.errors import InvalidParameter
from jaxserve.core.sampling import (
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_N,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKENS,
    SamplingParams,
)
from jaxserve.server.schemas.base import Body, shown

MAX_PROMPTS = 1024
_SAMPLING = frozenset(f.name for f in dataclasses.fields(SamplingParams))
_TOKENS: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_PROMPT: dict[str, Any] = _TOKENS | {"minItems": 1}


def _token_ids(value: object) -> object:
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise ValueError("must be a list of token ids")
    return value


def _one_prompt(value: object) -> object:
    if isinstance(value, str) or (isinstance(value, list) and all(type(token) is int for token in value)):
        return value
    raise ValueError("must be text or a list of token ids")


def _prompts(value: object) -> object:
    """Text, token ids, or a list of either. Checked by hand: a union's errors would be as long as the prompt."""
    if isinstance(value, list) and value and type(value[0]) is not int:
        if len(value) > MAX_PROMPTS:
            raise ValueError(f"has {len(value)} prompts: send at most {MAX_PROMPTS} in a request")
        kinds = {type(_one_prompt(prompt)) for prompt in value}
        if len(kinds) > 1:
            raise ValueError("mixes text and token ids: send one kind")
        return value
    return _one_prompt(value)


TokenIds = Annotated[list[Any], BeforeValidator(_token_ids), WithJsonSchema(_TOKENS)]
OnePrompt = Annotated[
    str | list[Any], BeforeValidator(_one_prompt),
    WithJsonSchema({"anyOf": [{"type": "string"}, _PROMPT]}),
]  # fmt: skip
Prompts = Annotated[
    str | list[Any], BeforeValidator(_prompts),
    WithJsonSchema({"anyOf": [
        {"type": "string"},
        _PROMPT,
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_PROMPTS},
        {"type": "array", "items": _PROMPT, "minItems": 1, "maxItems": MAX_PROMPTS},
    ]}),
]  # fmt: skip
StopString = Annotated[str, Field(min_length=1, max_length=1024)]
"""Longer ones are no use, and each output token is compared with all of them on the host."""
Stops = Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS, fail_fast=True)]


class StreamOptions(Body):
    include_usage: bool | None = Field(None, description="send the usage in a last chunk of its own")
    continuous_usage_stats: bool | None = Field(None, description="send the usage so far in every chunk")


class SamplingFields(Body):
    """Null is the default of every field, which is the model's own where its generation_config.json has one."""

    later: ClassVar[frozenset[str]] = frozenset(
        {
            "guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_json_object",
            "guided_decoding_backend", "guided_whitespace_pattern", "structured_outputs", "bad_words",
            "allowed_token_ids", "use_beam_search", "logits_processors", "prompt_embeds", "kv_transfer_params",
            "vllm_xargs",
        }
    )  # fmt: skip

    max_tokens: int | None = shown("most output tokens", minimum=0)
    min_tokens: int | None = shown("end and stop tokens are not sampled before this many", minimum=0)
    n: int | None = shown("completions of each prompt", minimum=1, maximum=MAX_N)
    temperature: float | None = shown("0 is greedy", minimum=0, maximum=100)
    top_k: int | None = shown("keep the k likeliest tokens; 0 or -1 keeps all", minimum=-1)
    top_p: float | None = shown("keep this much probability", exclusiveMinimum=0, maximum=1)
    min_p: float | None = shown("drop tokens below this share of the likeliest's probability", minimum=0, maximum=1)
    seed: int | None = shown("the same tokens whatever else is served", minimum=-(2**63), maximum=2**63 - 1)
    presence_penalty: float | None = shown("against tokens that occurred", minimum=-2, maximum=2)
    frequency_penalty: float | None = shown("the same, by how often", minimum=-2, maximum=2)
    repetition_penalty: float | None = shown("divides their logits", exclusiveMinimum=0, maximum=100)
    logit_bias: dict[str, float] | None = shown(
        "token id -> what to add to its logit, from -100 to 100", maxProperties=MAX_LOGIT_BIAS,
        patternProperties={"^[0-9]+$": {"type": "number", "minimum": -100, "maximum": 100}}, additionalProperties=False,
    )  # fmt: skip
    stop: StopString | Stops | None = Field(None, description="texts that end the output")
    stop_token_ids: TokenIds | None = shown("tokens that end it", maxItems=MAX_STOP_TOKENS)
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = Field(None, description="go on after the model's own end tokens")
    skip_special_tokens: bool | None = Field(None, description="leave special tokens out of the text (default)")
    prompt_logprobs: int | None = shown("log-probabilities of the prompt's tokens", minimum=0, maximum=MAX_LOGPROBS)
    stream: bool | None = Field(None, description="answer as server-sent events, one a token")
    cache_salt: Annotated[str, Field(max_length=512)] | None = Field(
        None, description="only requests of the tenant with an equal salt share cached prefixes"
    )
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = Field(
        None, description="smaller goes first, with orderings that use it; not before the tenant's own class"
    )
    tenant: str | None = Field(None, description="who asks, where no API key says it")
    ttft_slo_s: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="seconds within which the first token is wanted; the scheduler works to it if it is looser "
        "than what the tenant was promised",
    )
    tpot_slo_s: Annotated[float, Field(gt=0)] | None = Field(
        None, description="seconds between output tokens that are wanted at most, likewise"
    )
    timeout: float | None = shown("seconds until the request is aborted, with 504", exclusiveMinimum=0)

    def params(self, defaults: Mapping[str, Any], **changed: Any) -> SamplingParams:
        """What the sampler is asked; `changed` goes over the fields of the same name, and they over the `defaults`.

        Raises:
          InvalidParameter: names the field and what is accepted.
        """
        given = {name: value for name, value in self._given() if name in _SAMPLING}
        return SamplingParams(**(dict(defaults) | given | changed))

    def _given(self) -> list[tuple[str, Any]]:
        return [(name, value) for name in self.model_fields_set if (value := getattr(self, name)) is not None]

    def check_timeout(self, longest_s: float) -> float:
        """Seconds the request may take: its own wish, at most the server's."""
        if self.timeout is None:
            return longest_s
        if not self.timeout > 0:
            raise InvalidParameter("timeout", self.timeout, "seconds, above 0")
        return min(self.timeout, longest_s)
