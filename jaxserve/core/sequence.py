"""A request, and the sequences that it becomes.

A `Request` is what a caller asked for and never changes. Each of its `n` completions is a `Sequence`: the record that
the scheduler moves through its life.

    waiting --admit--> running --finish (stop, length, abort, error)--> finished
       ^                  |
       +-----preempt------+

`sched.Roster` makes these transitions and no other class does. With overlapped steps the host runs ahead of the
device: `num_computed` counts tokens whose K/V are in the cache *or in a step in flight*, and `num_pending` the tokens
being sampled there, whose values the host does not know yet.

    tokens      [p p p p p p | o o o]  ?            prompt, known outputs, one pending
    num_computed ----------------->|
"""

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxserve.core.plan import ONE_TOKEN, Wants
from jaxserve.core.sampling import SamplingParams


class Status(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(enum.StrEnum):
    """Values are the OpenAI API's, where it has one."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt and what to do with it.

    `prompt` holds token ids. `cache_salt` isolates the prefix cache: only requests of one tenant (see
    `Tenant.shares_prefixes`) with an equal salt share blocks. `session_id`: other requests are expected to go on from
    this one; the prefix cache knows sessions without it, too. `priority`: smaller goes first, with orderings that use
    it. A field that is None takes the tenant's setting; `Tenant.may_raise_priority` says what the others may ask for.
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    arrival_s: float = 0.0
    cache_salt: str = ""
    session_id: str | None = None
    eos_token_ids: tuple[int, ...] = ()
    tenant: str = "default"
    priority: int | None = None
    ttft_slo_s: float | None = None
    """Objective: longest time from the arrival to the first token."""
    tpot_slo_s: float | None = None
    """Objective: longest mean time between output tokens."""
    owner: str | None = None
    """The tenant whose prefixes it shares, where it runs as another: a line of a batch runs as `batch_tenant`."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end it: the model's end tokens unless ignored, and the caller's."""
        ends = () if self.params.ignore_eos else self.eos_token_ids
        return frozenset(ends) | frozenset(self.params.stop_token_ids)


class TtftForecast(NamedTuple):
    """When a sequence's first token was expected, as it was queued."""

    model_s: float
    """From the queue to the first token, as the cost model says, uncorrected."""
    expected_s: float
    """From the arrival on, corrected by the median error of earlier forecasts."""
    p90_s: float
    """The same, long enough for 9 of 10 requests."""
    pace: float = 1.0
    """`StepCosts.pace` when it was made."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One completion of a request, from the queue to its end.

    The fields are grouped by the class that writes them; every other class only reads. `tests/core/test_sequence.py`
    has the same table and finds every assignment.
    """

    # --- set once, by the maker. `TenantLedger` lowers `max_len` to the tenant's limit before the sequence is queued
    request: Request
    index: int
    """Which of the request's n completions this is."""
    max_len: int
    """Prompt plus output never exceed this many tokens."""
    seed: int

    # --- Scheduler
    tokens: list[int] = field(default_factory=list[int])
    """The prompt, and the outputs that the host knows."""
    arrival: int = 0
    """Arrival number. A preempted sequence keeps it, and so its place."""
    queued_s: float = 0.0
    """When it came to the scheduler."""
    first_token_s: float | None = None

    # --- Roster: admit, preempt, finish
    status: Status = Status.WAITING
    slot: int = -1
    """Row of the per-slot device state while running, else -1."""
    preemptions: int = 0
    num_cached: int = 0
    """Prompt tokens found in the prefix cache at the last admission."""
    first_scheduled_s: float | None = None
    finish_reason: FinishReason | None = None
    finished_s: float | None = None

    # --- progress: `Packer` advances it, `Roster` sets it at admission and preemption, `Scheduler.commit` lowers
    # `num_pending`
    num_computed: int = 0
    num_pending: int = 0
    decoding: bool = False
    """Its next input is the token sampled last, which the device already holds."""

    # --- BlockManager; of `hashes`: its PrefixCache
    blocks: list[int] = field(default_factory=list[int])
    num_registered: int = 0
    """Leading blocks that the prefix cache knows."""
    hashes: list[bytes] = field(default_factory=list[bytes])

    # --- TenantLedger: the request's own settings as far as its tenant may have them, or else its tenant's, or else the
    # engine's
    tenant: str = "default"
    priority: int = 0
    """Smaller goes first."""
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    """The objectives that the scheduler works to."""
    promised_ttft_s: float | None = None
    promised_tpot_s: float | None = None
    """What its tenant was promised: `slo_requests` judges by it, and other work yields to it.

    None: nothing was promised, or the request asked for less.
    """
    prefix_scope: str | None = None
    """Sequences with an equal scope and salt share prefixes; None: the common pool."""
    booked_blocks: int = 0
    """KV blocks that it is expected to need while it runs."""
    booked_tokens: int = 0
    """What it was charged of its tenant's `tokens_per_minute` when it was queued."""

    # --- TtftForecasts
    forecast: TtftForecast | None = None
    """None: there was no objective, or no cost model yet."""

    # --- WeightedFair
    num_charged: int = 0
    """Leading tokens that were counted as served to its tenant."""

    # --- derived from the request, stored because each step reads them
    stop_ids: frozenset[int] = field(init=False)
    decode_wants: Wants = ONE_TOKEN
    """What its decode rows want."""

    def __post_init__(self) -> None:
        if not self.tokens:
            self.tokens = list(self.request.prompt)
        self.stop_ids = self.request.stop_ids
        if self.params.logprobs is not None:
            self.decode_wants = Wants(True, self.params.logprobs)

    @property
    def id(self) -> str:
        return self.request.id if self.request.params.n == 1 else f"{self.request.id}/{self.index}"

    @property
    def params(self) -> SamplingParams:
        return self.request.params

    @property
    def shares_prefix(self) -> bool:
        """Whether it may start from cached blocks: not if log-probabilities of the whole prompt were asked for."""
        return self.request.params.prompt_logprobs is None

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt)

    @property
    def num_outputs(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def output_tokens(self) -> list[int]:
        return self.tokens[len(self.request.prompt) :]

    @property
    def num_uncomputed(self) -> int:
        """Known tokens that still have to go through the model."""
        return len(self.tokens) + self.num_pending - self.num_computed

    @property
    def finished(self) -> bool:
        return self.status is Status.FINISHED
