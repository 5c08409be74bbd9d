"""What `/v1/completions` and `/v1/chat/completions` have in common beside sampling."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from jaxserve.core.errors import InvalidRequest
from jaxserve.core.sampling import SamplingParams
from jaxserve.server.schemas.base import shown
from jaxserve.server.schemas.sampling import SamplingFields, StreamOptions


class OpenAIFields(SamplingFields):
    later: ClassVar[frozenset[str]] = SamplingFields.later | {
        "tools", "functions", "function_call", "parallel_tool_calls", "prediction", "audio", "web_search_options",
        "reasoning_effort", "verbosity", "store", "mm_processor_kwargs", "documents", "logits_processors",
        "prompt_cache_retention",
    }  # fmt: skip

    model: str | None = Field(None, description="the served model's name; may be left out")
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=512)] | None = Field(None, description="goes into the log")
    safety_identifier: Annotated[str, Field(max_length=512)] | None = Field(
        None, description="as user, whom it replaces"
    )
    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = Field(
        None, description="a hint that is not needed: common prefixes are found by what they hold"
    )
    metadata: dict[str, Any] | None = Field(None, description="not kept: only empty")
    service_tier: Literal["auto", "default"] | None = None
    response_format: dict[str, Any] | None = Field(None, description="only {type: text}")
    tool_choice: Literal["none", "auto"] | None = None
    truncate_prompt_tokens: int | None = shown("keep only the last so many tokens of the prompt", minimum=1)
    return_token_ids: bool | None = Field(None, description="add token_ids to choices, and prompt_token_ids")
    return_tokens_as_token_ids: bool | None = Field(None, description="name tokens in log-probabilities token_id:N")
    spaces_between_special_tokens: bool | None = Field(None, description="only true")

    @abstractmethod
    def sampling(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """What the sampler is asked, over the model's defaults. Raises InvalidRequest."""

    def check_openai(self) -> None:
        """Raises InvalidRequest for what is read and cannot be done."""
        if self.response_format is not None and self.response_format != {"type": "text"}:
            raise InvalidRequest(
                "response_format other than {'type': 'text'} is not supported yet: leave it out", "response_format"
            )
        if self.metadata:
            raise InvalidRequest("metadata is kept of batches only: leave it out", "metadata")
        if self.spaces_between_special_tokens is False:
            raise InvalidRequest("spaces_between_special_tokens can only be true", "spaces_between_special_tokens")
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options goes with stream: true", "stream_options")
        if self.truncate_prompt_tokens is not None and self.truncate_prompt_tokens < 1:
            raise InvalidRequest("truncate_prompt_tokens must be 1 or more", "truncate_prompt_tokens")
