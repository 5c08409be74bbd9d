"""A request, and the sequences that it becomes.

A `Request` is what a caller asked for and never changes. Each of its `n` completions is a `Sequence`: the record that
the scheduler moves through its life.

    waiting --admitted--> running --stop, length, abort--> finished
       ^                     |
       +-----preempted-------+

Only the scheduler writes a sequence, and only the block manager its `blocks` and `hashes`. With overlapped steps the
host runs ahead of the device: `num_computed` counts tokens whose K/V are in the cache *or in a step under way*, and
`num_pending` the tokens being sampled there, whose values the host does not know yet.

    tokens      [p p p p p p | o o o]  ?            prompt, known outputs, one pending
    num_computed ----------------->|
"""

import enum
from dataclasses import dataclass, field

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

    `prompt` holds token ids. `cache_salt` isolates the prefix cache: only requests with an equal salt share blocks.
    `priority`: smaller goes first, with orderings that heed it. What is None, the tenant's settings say.
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    arrival_s: float = 0.0
    cache_salt: str = ""
    eos_token_ids: tuple[int, ...] = ()
    tenant: str = "default"
    priority: int | None = None
    ttft_slo_s: float | None = None
    """The first token is to come within this time after the arrival."""
    tpot_slo_s: float | None = None
    """Mean time between output tokens that is wanted at most."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end it: the model's end tokens unless ignored, and the caller's."""
        ends = () if self.params.ignore_eos else self.eos_token_ids
        return frozenset(ends) | frozenset(self.params.stop_token_ids)


@dataclass(slots=True, eq=False)
class Sequence:
    """One completion of a request, on its way."""

    request: Request
    index: int
    """Which of the request's n completions this is."""
    max_len: int
    """Prompt plus output never exceed this many tokens."""
    seed: int
    tokens: list[int] = field(default_factory=list[int])
    status: Status = Status.WAITING
    slot: int = -1
    """Row of the per-slot device state while running, else -1."""
    num_computed: int = 0
    num_pending: int = 0
    num_cached: int = 0
    """Prompt tokens found in the prefix cache at the last admission."""
    decoding: bool = False
    """Its next input is the token sampled last, which the device already holds."""
    preemptions: int = 0
    blocks: list[int] = field(default_factory=list[int])
    hashes: list[bytes] = field(default_factory=list[bytes])
    num_registered: int = 0
    """Leading blocks that the prefix cache knows."""
    finish_reason: FinishReason | None = None
    stop_token: int | None = None
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    arrival: int = 0
    """Arrival number: a preempted sequence keeps its place."""
    queued_s: float = 0.0
    """When it came to the scheduler."""
    tenant: str = "default"
    priority: int = 0
    """Smaller goes first. This and what follows: the request's, or else its tenant's."""
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    booked_blocks: int = 0
    """KV blocks that it is expected to need, while it runs."""
    forecast_s: float = 0.0
    """Predicted time from the queue to the first token, before it is corrected; 0: none was made."""
    predicted_ttft_s: float = 0.0
    """The same from the arrival on, corrected by what forecasts have been worth; and what 9 of 10 stay within."""
    predicted_p90_s: float = 0.0
    num_charged: int = 0
    """Leading tokens that were counted as served to its tenant."""
    stop_ids: frozenset[int] = frozenset()
    """The request's, at hand: each token is looked up in it."""
    decode_wants: Wants = ONE_TOKEN
    """What its decode rows want, at hand."""

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
