"""What the scheduler decided in a step and why, as plain data: /debug shows it, `metrics.timeline` draws it."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxserve.core.plan import Bucket


class Reason(enum.StrEnum):
    """Why a sequence has no row in a step. It has exactly one in every step."""

    BLOCKS = "blocks"
    """It is next, and the KV blocks do not suffice."""
    BUDGET = "budget"
    """It is next, and the step has no tokens, no rows or no slot left for it."""
    SHARE = "share"
    """Its tenant is at its share of the blocks."""
    ORDER = "order"
    """Others go first."""
    GATE = "gate"
    """The batch policy lets nobody join in this step."""
    TIER = "tier"
    """Its blocks are on their way back from the host's memory or the disk."""


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


class Displaced(NamedTuple):
    """A sequence that gave way."""

    sequence: str
    claimant: str
    fate: str
    prices: Mapping[str, float]
    """Device seconds that each option would have cost; empty while nothing has been learnt about them."""


class Waited(NamedTuple):
    """A sequence that waits for blocks until somebody ends, which was cheaper than to displace anybody."""

    claimant: str
    spared: str
    """Who would have given way: another one, or itself."""
    prices: Mapping[str, float]
    """Device seconds: "wait", and by what ways the spared one could have given way."""


@dataclass(slots=True)
class Decision:
    """One step. Times are seconds on the engine's clock."""

    step: int
    planned_s: float
    bucket: Bucket
    """Zeros: nothing was computed, only moves were made or waited for."""
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
    displaced: tuple[Displaced, ...] = ()
    waited: tuple[Waited, ...] = ()
    held: dict[str, Reason] = field(default_factory=dict[str, Reason])
    """Sequences without a row, by name: whoever is not named and waits has the reason `others`."""
    waiting: dict[Reason, int] = field(default_factory=dict[Reason, int])
    others: Reason = Reason.ORDER
    changes: list[Change] = field(default_factory=list[Change])
    """Since the step before was planned, until the next one is."""
    ended_s: float | None = None
    """None: under way, or lost."""
