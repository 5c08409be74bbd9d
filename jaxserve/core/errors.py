"""One tree of errors. Everything a user can fix derives from `JaxserveError`, and its message says how.

`InvalidRequest` is the caller's fault and harms nobody else: HTTP answers 400 with `param` naming the field.
"""

from collections.abc import Iterable
from typing import NamedTuple


class JaxserveError(Exception):
    """Base of every error raised on purpose."""


# --- requests -------------------------------------------------------------------------------------------------


class InvalidRequest(JaxserveError, ValueError):
    """A request that can never be served as it is. `param` is the name of the field at fault."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidParameter(InvalidRequest):
    """A sampling parameter out of its range: says what was given, or how it begins, and what is accepted."""

    def __init__(self, param: str, value: object, accepted: str) -> None:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        super().__init__(f"{param} = {shown} is not accepted: give {accepted}", param)


class TooManyItems(InvalidParameter):
    """A list that is too long; `kind`: of what, in the plural."""

    def __init__(self, param: str, count: int, most: int, kind: str) -> None:
        InvalidRequest.__init__(
            self, f"{param} has {count} {kind}, and at most {most} are accepted: leave some out", param
        )


class EmptyPrompt(InvalidRequest):
    def __init__(self) -> None:
        super().__init__("the prompt has no tokens: give text, or at least one token id", "prompt")


class TokenOutOfRange(InvalidRequest):
    def __init__(self, token: object, vocab_size: int, param: str = "prompt") -> None:
        wrong = "is outside the vocabulary" if type(token) is int else "is no whole number"
        super().__init__(f"token id {token!r} {wrong}: ids go from 0 to {vocab_size - 1}", param)


class TooManyBanned(InvalidRequest):
    """`min_tokens` cannot hold back so many ends."""

    def __init__(self, ends: int, limit: int) -> None:
        super().__init__(
            f"min_tokens holds back at most {limit} tokens, and {ends} would end this request: give fewer "
            f"stop_token_ids, or set ignore_eos to leave out the model's own",
            "min_tokens",
        )


class PromptTooLong(InvalidRequest):
    """`limit_name` says which setting set the limit: the model's length or the KV pool."""

    def __init__(self, tokens: int, limit: int, limit_name: str = "max_model_len") -> None:
        super().__init__(
            f"the prompt has {tokens} tokens and at most {limit} fit ({limit_name}): shorten it, "
            f"or start the engine with a larger {limit_name}",
            "prompt",
        )


class RequestTooLarge(InvalidRequest):
    """Prompt plus requested output can never be held at once."""

    def __init__(self, tokens: int, limit: int, limit_name: str) -> None:
        super().__init__(
            f"prompt and max_tokens together need {tokens} tokens and at most {limit} fit ({limit_name}): "
            f"lower max_tokens, shorten the prompt, or start the engine with a larger {limit_name}",
            "max_tokens",
        )


class DuplicateRequest(InvalidRequest):
    def __init__(self, request_id: str) -> None:
        super().__init__(f"request id {request_id!r} is in use: give each live request its own", "request_id")


class UnknownModel(InvalidRequest):
    def __init__(self, model: str, served: str) -> None:
        super().__init__(f"the model {model!r} is not served here: ask for {served!r}, or leave model out", "model")


class RateState(NamedTuple):
    """How far a tenant has used up one of its rates."""

    kind: str
    """Of what: "requests" or "tokens"."""
    limit: int
    remaining: int
    reset_s: float
    """Seconds until nothing of it is used."""


class TooBusy(JaxserveError):
    """Not now: the same request may be served later (HTTP 429 with Retry-After).

    `retry_after_s`: when a new attempt may succeed. `rate`: the rate that refused it, if one did. `reason`:

        "queue_full", "slo"              the engine has too much to do
        "rate_limit", "tenant_limit"     the tenant is at a limit of its own: a rate, or how many may wait or run
    """

    def __init__(self, message: str, reason: str, retry_after_s: float, rate: RateState | None = None) -> None:
        super().__init__(message)
        self.reason, self.retry_after_s, self.rate = reason, retry_after_s, rate


class QueueFull(TooBusy):
    """A waiting queue is at its bound. `limit_name` says which setting set it."""

    def __init__(
        self,
        waiting: int,
        limit: int,
        limit_name: str = "max_waiting",
        retry_after_s: float = 1.0,
        what: str = "requests",
        reason: str = "queue_full",
    ) -> None:
        super().__init__(
            f"{waiting} {what} wait and the bound is {limit} ({limit_name}): try again later", reason, retry_after_s
        )


# --- set-up ---------------------------------------------------------------------------------------------------


class ConfigError(JaxserveError, ValueError):
    """A setting that cannot work: names the setting, the value and what is accepted."""


class CheckpointError(JaxserveError):
    """A checkpoint that cannot be read: names the file, what was found there, what is supported."""

    def __init__(self, path: object, found: str, supported: str) -> None:
        super().__init__(f"{path}: {found}; {supported}")
        self.path, self.found, self.supported = str(path), found, supported


class UnsupportedArchitecture(JaxserveError):
    def __init__(self, path: object, found: str, supported: Iterable[str]) -> None:
        super().__init__(f"{path}: architecture {found!r} is not supported; supported: {', '.join(sorted(supported))}")


class ParamsMismatch(JaxserveError, ValueError):
    """A parameter pytree that does not fit the model: names the leaf, what was found, what is expected."""


class NotEnoughMemory(JaxserveError):
    """The KV cache would have no room for one sequence: says what takes the memory and which setting to change."""


class CompilerMissing(JaxserveError):
    """Programs for a GPU cannot be compiled here: says what to install."""


# --- running --------------------------------------------------------------------------------------------------


class UnexpectedCompilation(JaxserveError):
    """A step compiled a program, while `on_compile_after_warmup` is "error": what that step ran fails with this."""


class EngineStopped(JaxserveError):
    """The engine no longer takes or serves requests. The message says why."""


class StepFailed(JaxserveError):
    """The step that ran this request failed: out of memory, a device error, logits that are not finite. Others are
    served (HTTP 500)."""

    def __init__(self, cause: str | None) -> None:
        super().__init__(f"the step that ran this request failed: {cause}")


class NonFiniteLogits(JaxserveError):
    """The model, or the processor of logits, made NaN of a request. Others are served."""

    def __init__(self) -> None:
        super().__init__(
            "the logits of this request are not finite (NaN, infinite, or -inf for every token): change the prompt; if "
            "others fail too, look at the weights, the dtype (float16 overflows above 65504, bfloat16 does not) and "
            "the logits_processor"
        )


class DeadlineExceeded(JaxserveError):
    """The request ran out of the time it was given; it is aborted (HTTP 504)."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"not done within {timeout_s:g} s: lower max_tokens, or give a longer timeout")


class ReaderTooSlow(JaxserveError):
    """A stream's reader left too many outputs unread; its request is aborted and the connection cut."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the client left {limit} events unread: read faster, or do not stream")
