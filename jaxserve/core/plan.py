"""What the scheduler hands to the executor for one step, and what comes back: plain data.

A step is one flat run of tokens: decode rows first (one token each), then prefill chunks.

    | d0 | d1 | d2 | .. padding .. | chunk of a | chunk of b | .. padding .. |
      decode_rows of the bucket      prefill_tokens of the bucket
"""

import enum
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxserve.core.sequence import Sequence


class Bucket(NamedTuple):
    """The padded sizes of a step. One bucket is one compiled program."""

    decode_rows: int
    prefill_tokens: int
    prefill_rows: int
    sample_rows: int
    """Rows that get logits: one each decode row and chunk, rounded up so that buckets share sampling programs."""

    @property
    def tokens(self) -> int:
        return self.decode_rows + self.prefill_tokens

    def __str__(self) -> str:
        return f"{self.decode_rows}d+{self.prefill_tokens}p"


class Row(NamedTuple):
    """One sequence's part of a step: its tokens start .. start + length - 1.

    `samples`: the row's last token is the sequence's last one, so the step samples a successor.
    """

    sequence: Sequence
    start: int
    length: int
    samples: bool


NO_BUCKET = Bucket(0, 0, 0, 0)
"""The bucket of a step without rows: nothing is computed, only moves are made, or waited for."""


class Tier(enum.StrEnum):
    """Where a block's K/V can be."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"
    STAGED = "staged"
    """In host memory, on the way from the disk; numbered as on the disk, where it still is as well."""
    NONE = "none"


class MoveKind(enum.StrEnum):
    """What a move does; `Move` has the table of which tiers it goes between."""

    SAVE = "save"
    LOAD = "load"
    FETCH = "fetch"
    UNSTAGE = "unstage"
    DROP = "drop"


class Move(NamedTuple):
    """K/V of one block on its way between tiers, all layers.

    Moves are made in the plan's order, those from the device before the step's rows run and those to the device after
    them: a block may be saved and overwritten in one step, and a loaded block is there for the step after.

        save       device -> host, disk
        load       host, staged -> device    from `staged`, the file is removed as well
        fetch      disk -> staged            read into host memory, where it waits to be loaded
        unstage    staged -> disk            forgotten in host memory; the file is still there
        drop       disk, staged -> none      forgotten, and the file removed

    Only what touches the disk can fail or takes longer than the step: a save to it and a fetch are reported (`Moved`).
    """

    source: Tier
    source_block: int
    target: Tier
    target_block: int
    key: int
    """Serial number of the move."""

    @property
    def kind(self) -> MoveKind:
        return _KINDS[self.source, self.target]


_KINDS = {
    (Tier.DEVICE, Tier.HOST): MoveKind.SAVE,
    (Tier.DEVICE, Tier.DISK): MoveKind.SAVE,
    (Tier.HOST, Tier.DEVICE): MoveKind.LOAD,
    (Tier.STAGED, Tier.DEVICE): MoveKind.LOAD,
    (Tier.DISK, Tier.STAGED): MoveKind.FETCH,
    (Tier.STAGED, Tier.DISK): MoveKind.UNSTAGE,
    (Tier.DISK, Tier.NONE): MoveKind.DROP,
    (Tier.STAGED, Tier.NONE): MoveKind.DROP,
}


class Moved(NamedTuple):
    """A move that has ended. Not `ok`: the disk was full, failed, or did not hold what was written."""

    move: Move
    ok: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step. Rows refer to live sequences: an executor reads them in `submit` and not later."""

    step: int
    decodes: tuple[Row, ...]
    prefills: tuple[Row, ...]
    bucket: Bucket
    admitted: tuple[Sequence, ...] = ()
    """Sequences that got their slot in this step: the executor loads their per-slot state first."""
    preempted: tuple[Sequence, ...] = ()
    moves: tuple[Move, ...] = ()
    """A plan may hold moves and no rows, or neither: then the step is to wait a moment for moves under way."""

    @property
    def num_tokens(self) -> int:
        return len(self.decodes) + sum(row.length for row in self.prefills)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position: of the token there, and of the likeliest ones, best first."""

    token: int
    logprob: float
    rank: int
    """1: the token was the likeliest."""
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step brought back. Rows in the plan's order: decodes, then prefills."""

    tokens: NDArray[np.int32]  # [rows]; meaningless for a row that does not sample
    logprobs: dict[int, TokenLogprobs] | None = None
    """By row, for the rows that asked."""
    prompt_logprobs: dict[int, list[TokenLogprobs]] | None = None
    """By row: at the chunk's positions, the log-probabilities of the *next* prompt token."""
    moved: tuple[Moved, ...] = ()
    """Moves to and from the disk that have ended since the last result."""
