"""`POST /v1/chat/completions`."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from jaxserve.core.errors import InvalidParameter, InvalidRequest
from jaxserve.core.sampling import MAX_LOGPROBS, SamplingParams
from jaxserve.server.schemas.base import Body, shown
from jaxserve.server.schemas.openai import OpenAIFields
from jaxserve.text.tokenizer import template_options


class TextPart(Body):
    type: Literal["text"] = Field(description="other parts are not supported")
    text: str


def _text_part(value: object) -> object:
    if isinstance(value, dict) and isinstance(kind := value.get("type"), str) and kind != "text":
        raise ValueError(f"only parts of type text are read here, no {kind}")
    return value


class ChatMessage(Body):
    """Also takes back, when empty, what answers carry: refusal, tool_calls, ..."""

    role: str = Field(description="system, user, assistant, or what else the model's template knows; developer: system")
    content: (
        str
        | Annotated[list[Annotated[TextPart, BeforeValidator(_text_part)]], Field(max_length=1000, fail_fast=True)]
        | None
    ) = None
    name: str | None = None
    refusal: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: None = None
    audio: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    reasoning_content: None = None

    def for_template(self) -> dict[str, Any]:
        content = self.content
        if isinstance(content, list):
            content = "\n".join(part.text for part in content)
        message = {"role": "system" if self.role == "developer" else self.role, "content": content or ""}
        return message | ({"name": self.name} if self.name else {})


class ChatBody(OpenAIFields):
    later: ClassVar[frozenset[str]] = OpenAIFields.later | {"chat_template", "include_reasoning"}

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=10_000, fail_fast=True)]
    max_completion_tokens: int | None = shown("as max_tokens", minimum=0)
    logprobs: bool | None = Field(None, description="log-probabilities of the output's tokens")
    top_logprobs: int | None = shown("and of so many likeliest ones", minimum=0, maximum=MAX_LOGPROBS)
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    add_generation_prompt: bool | None = Field(None, description="open the assistant's turn (default)")
    continue_final_message: bool | None = Field(None, description="go on with the last message instead")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="more names for the template")
    add_special_tokens: bool | None = Field(None, description="beside those that the template writes; default: none")

    def sampling(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """Without max_tokens, the output may take what the model's length leaves."""
        self.check_openai()
        limits = {limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None}
        if len(limits) > 1:
            raise InvalidRequest("max_tokens and max_completion_tokens differ: give one", "max_completion_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs goes with logprobs: true", "top_logprobs")
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= MAX_LOGPROBS:
            raise InvalidParameter("top_logprobs", self.top_logprobs, f"a whole number from 0 to {MAX_LOGPROBS}")
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        max_tokens = next(iter(limits), defaults.get("max_tokens"))
        return self.params(defaults, max_tokens=max_tokens, logprobs=logprobs)

    def conversation(self) -> list[dict[str, Any]]:
        return [message.for_template() for message in self.messages]

    def template_options(self) -> dict[str, Any]:
        return template_options(self.chat_template_kwargs, self.add_generation_prompt, self.continue_final_message)
