"""What the scheduler decided in a step and why, as plain data: /debug shows it, `metrics.timeline` draws it.

The names of the fields of `Decision` are keys of `/debug/decisions` and stay as they are.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxserve.core.plan import Bucket


class Reason(enum.StrEnum):
    """Why a sequence has no row in a step. It has exactly one in every step."""

    BLOCKS = "blocks"
    """It is next, and there are not enough KV blocks."""
    BUDGET = "budget"
    """It is next, and the step has no tokens, no rows or no slot left."""
    SHARE = "share"
    """Its tenant is at its share of the blocks."""
    ORDER = "order"
    """Others go before it."""
    GATE = "gate"
    """The batch policy admits no sequence in this step."""
    TIER = "tier"
    """Its blocks are being loaded from host memory or disk."""


class Part(NamedTuple):
    """Where a sequence's time goes; a request's time is the sum of its parts."""

    name: str
    """intake, queued, preempted, prefill, decode, or running (it holds blocks and has no row)."""
    reason: Reason | None = None
    """Of queued, preempted and running."""

    def __str__(self) -> str:
        return self.name if self.reason is None else f"{self.name}:{self.reason}"


INTAKE = Part("intake")
"""Between its arrival and the scheduler's queue."""
PREFILL = Part("prefill")
DECODE = Part("decode")
ENDED = Part("ended")


class Change(NamedTuple):
    """From `at_s` on the sequence's time goes to `part`."""

    at_s: float
    sequence: str
    part: Part


class Chunk(NamedTuple):
    """Prompt tokens start .. start + length - 1 of a sequence."""

    sequence: str
    start: int
    length: int


class Preemption(NamedTuple):
    """A sequence was preempted so that `claimant` could be admitted or grow; it may be the claimant itself."""

    sequence: str
    claimant: str
    fate: str
    prices: Mapping[str, float]
    """Device seconds that each option would have cost; empty while the cost model has not learnt enough."""


class Waited(NamedTuple):
    """A sequence waits for blocks until another one ends, which is cheaper than a preemption."""

    claimant: str
    spared: str
    """The sequence that would have been preempted: another one, or the claimant."""
    prices: Mapping[str, float]
    """Device seconds: of "wait", and of each way to preempt the spared one."""


@dataclass(slots=True)
class Decision:
    """One step. Times are seconds on the engine's clock."""

    step: int
    planned_s: float
    bucket: Bucket
    """Zeros: the step computed nothing, it only made moves or waited for some."""
    decode_rows: int
    chunks: tuple[Chunk, ...]
    admitted: tuple[str, ...]
    moves: dict[str, int]
    """Blocks by "source>target"."""
    blocks_held: int
    blocks_cached: int
    blocks: int
    """Of the pool: held by sequences, free but of known content, all."""
    host_blocks: int
    disk_blocks: int
    displaced: tuple[Preemption, ...] = ()
    waited: tuple[Waited, ...] = ()
    held: dict[str, Reason] = field(default_factory=dict[str, Reason])
    """Why a sequence, by name, has no row. A waiting sequence that is not in it has the reason `others`."""
    waiting: dict[Reason, int] = field(default_factory=dict[Reason, int])
    others: Reason = Reason.ORDER
    changes: list[Change] = field(default_factory=list[Change])
    """Since the step before was planned, until the next one is."""
    ended_s: float | None = None
    """None: in flight, or lost."""
