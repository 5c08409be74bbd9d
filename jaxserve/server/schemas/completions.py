"""`POST /v1/completions`."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from jaxserve.core.errors import InvalidRequest
from jaxserve.core.sampling import MAX_LOGPROBS, SamplingParams
from jaxserve.server.schemas.base import shown
from jaxserve.server.schemas.openai import OpenAIFields
from jaxserve.server.schemas.sampling import Prompts

MAX_TOKENS = 16
"""OpenAI's default here, whatever the model's own is."""


class CompletionsBody(OpenAIFields):
    later: ClassVar[frozenset[str]] = OpenAIFields.later | {"suffix"}

    prompt: Prompts = Field(description="text, token ids, or a list of either")
    echo: bool | None = Field(None, description="begin the text with the prompt")
    logprobs: int | None = shown("log-probabilities of so many tokens a place", minimum=0, maximum=MAX_LOGPROBS)
    best_of: int | None = shown("only equal to n", minimum=1)
    add_special_tokens: bool | None = Field(None, description="as the tokenizer does for a text (default)")

    @property
    def prompts(self) -> list[str | list[int]]:
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or not prompt or type(prompt[0]) is int else prompt

    def sampling(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """With echo, the prompt's tokens are scored as the output's are."""
        self.check_openai()
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise InvalidRequest("best_of other than n is not supported: leave it out", "best_of")
        echoed = self.echo and self.prompt_logprobs is None
        return self.params(
            dict(defaults) | {"max_tokens": MAX_TOKENS},
            prompt_logprobs=self.logprobs if echoed else self.prompt_logprobs,
        )
