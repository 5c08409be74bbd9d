"""`POST /tokenize` and `POST /detokenize`, as vLLM has them."""

from typing import Annotated, Any

from pydantic import Field

from jaxserve.core.errors import InvalidRequest
from jaxserve.server.schemas.base import Body
from jaxserve.server.schemas.chat import ChatMessage
from jaxserve.server.schemas.sampling import TokenIds
from jaxserve.text.tokenizer import template_options


class TokenizeBody(Body):
    """A text, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=10_000, fail_fast=True)] | None = None
    add_special_tokens: bool | None = Field(None, description="default: true for a prompt, false for messages")
    return_token_strs: bool | None = Field(None, description="add token_strs, each token's own text")
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def check_one(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("give one of prompt and messages", "prompt")

    def template_options(self) -> dict[str, Any]:
        return template_options(self.chat_template_kwargs, self.add_generation_prompt, self.continue_final_message)


class DetokenizeBody(Body):
    model: str | None = None
    tokens: TokenIds
