"""What happened in a step, as data: the scheduler logs nothing and counts nothing, it says."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

from jaxserve.core.plan import Tier, TokenLogprobs
from jaxserve.core.sequence import FinishReason, Request, Sequence


class TokenSampled(NamedTuple):
    """A sequence's output grew by one token. `finish`: it ended with it."""

    sequence: Sequence
    token: int
    logprobs: TokenLogprobs | None = None
    finish: FinishReason | None = None


token_sampled = cast(
    "Callable[[tuple[Sequence, int, TokenLogprobs | None, FinishReason | None]], TokenSampled]",
    partial(cast("Any", tuple).__new__, TokenSampled),
)
"""`TokenSampled(*fields)`, faster: see `core.plan.row_of`."""


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
    nonfinite: bool = False
    """It failed because its logits were not finite."""


@dataclass(frozen=True, slots=True)
class Preempted:
    """It was preempted, and waits again. `tier`: where its K/V were moved; None: they will be computed again."""

    sequence: Sequence
    tier: Tier | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that was never queued. `reason`: see `TooBusy`; "invalid" for one that can never be served."""

    tenant: str
    reason: str
    request: Request | None = None


Event = TokenSampled | PromptScored | Finished | Preempted | Refused
