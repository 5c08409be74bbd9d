"""`POST /generate`: the engine's own words, nothing translated."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from jaxserve.core.errors import InvalidRequest
from jaxserve.core.sampling import MAX_LOGPROBS, SamplingParams
from jaxserve.server.schemas.base import shown
from jaxserve.server.schemas.sampling import OnePrompt, SamplingFields, TokenIds


class GenerateBody(SamplingFields):
    later: ClassVar[frozenset[str]] = SamplingFields.later

    prompt: OnePrompt | None = Field(None, description="text, or token ids")
    prompt_token_ids: TokenIds | None = Field(None, description="instead of prompt")
    logprobs: int | None = shown("log-probabilities of the output's tokens", minimum=0, maximum=MAX_LOGPROBS)
    request_id: str | None = Field(None, max_length=200, description="comes back as id; unique among live requests")

    @property
    def the_prompt(self) -> str | list[int]:
        if (self.prompt is None) == (self.prompt_token_ids is None):
            raise InvalidRequest("give one of prompt (text or token ids) and prompt_token_ids", "prompt")
        prompt = self.prompt if self.prompt is not None else self.prompt_token_ids
        assert prompt is not None
        return prompt

    def sampling(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """A max_tokens of null is what the model's length leaves; without the field it is 16, or the model's own."""
        unlimited = "max_tokens" in self.model_fields_set and self.max_tokens is None
        return self.params(defaults, **({"max_tokens": None} if unlimited else {}))
