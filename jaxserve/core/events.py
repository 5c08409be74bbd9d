"""What happened in a step, as data: the scheduler logs nothing and counts nothing, it says."""

from dataclasses import dataclass

from jaxserve.core.plan import TokenLogprobs
from jaxserve.core.sequence import FinishReason, Sequence


@dataclass(frozen=True, slots=True)
class TokenSampled:
    """A sequence's output grew by one token. `finish`: it ended with it."""

    sequence: Sequence
    token: int
    logprobs: TokenLogprobs | None = None
    finish: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class PromptScored:
    """Log-probabilities of a run of prompt tokens that begins at position `start`."""

    sequence: Sequence
    start: int
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """A sequence ended without a token: aborted, failed, or asked for none."""

    sequence: Sequence
    reason: FinishReason
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Preempted:
    sequence: Sequence


Event = TokenSampled | PromptScored | Finished | Preempted
