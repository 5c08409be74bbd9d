"""What can never be served is refused here, before it reaches the scheduler: no step fails because of a request."""

from collections.abc import Iterable
from dataclasses import dataclass

from jaxserve.core.errors import EmptyPrompt, PromptTooLong, RequestTooLarge, TokenOutOfRange, TooManyBanned
from jaxserve.core.sampling import MAX_BANNED
from jaxserve.core.sequence import Request


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model and the pool can hold, in tokens."""

    vocab_size: int
    max_model_len: int
    pool_tokens: int
    pool_setting: str = "kv_cache_bytes"
    """The setting that a larger pool takes."""

    @property
    def max_len(self) -> tuple[int, str]:
        """The longest sequence, and the setting that says so."""
        if self.pool_tokens < self.max_model_len:
            return self.pool_tokens, self.pool_setting
        return self.max_model_len, "max_model_len"

    def check(self, request: Request) -> int:
        """The most tokens that prompt and output may reach together.

        Raises:
          EmptyPrompt, PromptTooLong, RequestTooLarge, TokenOutOfRange, TooManyBanned: with what to change.
        """
        prompt, params = request.prompt, request.params
        limit, name = self.max_len
        if not prompt:
            raise EmptyPrompt
        self.check_length(len(prompt), output=params.max_tokens != 0)
        self._check_tokens(prompt, "prompt")
        self._check_tokens(params.stop_token_ids, "stop_token_ids")
        self._check_tokens(params.logit_bias, "logit_bias")
        if params.min_tokens and len(request.stop_ids) > MAX_BANNED:
            raise TooManyBanned(len(request.stop_ids), MAX_BANNED)
        if params.max_tokens is None:
            return limit
        if len(prompt) + params.max_tokens > limit:
            raise RequestTooLarge(len(prompt) + params.max_tokens, limit, name)
        return len(prompt) + params.max_tokens

    def check_length(self, prompt_tokens: int, *, output: bool = True) -> None:
        """Raises PromptTooLong. `output`: at least one token is wanted behind the prompt."""
        limit, name = self.max_len
        if prompt_tokens > limit - output:
            raise PromptTooLong(prompt_tokens, limit - output, name)

    def _check_tokens(self, tokens: Iterable[object], param: str) -> None:
        for token in tokens:
            if type(token) is not int or not 0 <= token < self.vocab_size:
                raise TokenOutOfRange(token, self.vocab_size, param)
