"""What the scheduler hands to the executor for one step, and what comes back: plain data, which may leave the process.

A step is one flat run of tokens: decode rows first, then prefill chunks.

    | d0 | d1 | d2 | .. padding .. | chunk of a | chunk of b | .. padding .. |
      decode_rows of the bucket      prefill_tokens of the bucket

A plan names sequences by their slots: rows of the per-slot state that the executor keeps (block table, token history,
length, sampling parameters). A slot begins with `Admitted`. The result is ragged: a count of sampled tokens for each
row, and all tokens in one run. The scheduler keeps its own `Sequence`s beside the plan (`core.step_record`).
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from jaxserve.core.sampling import SamplingParams


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


class Wants(NamedTuple):
    """What a row's result is to hold."""

    token: bool
    """A token after the row's last one: the row ends where the sequence's known tokens end."""
    logprobs: int | None = None
    """Log-probabilities of each sampled token and of this many likeliest ones; None: none."""
    prompt_logprobs: int | None = None
    """The same of `prompt_targets`."""
    prompt_targets: Sequence[int] = ()
    """The prompt tokens at positions start + 1, start + 2, ..: those that the row's positions predict."""


NOTHING = Wants(False)
ONE_TOKEN = Wants(True)


class Row(NamedTuple):
    """One sequence's part of a step: its tokens start .. start + length - 1."""

    slot: int
    start: int
    length: int
    wants: Wants
    tokens: Sequence[int] = ()
    """Of a prefill chunk. A decode row brings none: the executor sampled its token, and knows it before the host."""
    blocks: Sequence[int] = ()
    """Of a prefill chunk: the sequence's whole block table. Of a decode row: the blocks that its tokens are written
    to, beginning with the one of `start`."""


row_of = cast(
    "Callable[[tuple[int, int, int, Wants, Sequence[int], Sequence[int]]], Row]",
    partial(cast("Any", tuple).__new__, Row),
)
"""`Row(*fields)`, 0.4 us faster than its constructor, of the 1.7 us that planning a decode row takes (CPython 3.12)."""


class Admitted(NamedTuple):
    """A sequence that got its slot in this step: what the executor keeps for the slot until it is given away again."""

    slot: int
    request_id: str
    completion: int
    """Which of the request's n completions it is."""
    params: SamplingParams
    seed: int
    num_prompt: int
    tokens: Sequence[int]
    """All known ones: the prompt, and outputs from before a preemption."""
    stop_ids: frozenset[int]


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
    step: int
    decodes: tuple[Row, ...]
    prefills: tuple[Row, ...]
    bucket: Bucket
    admitted: tuple[Admitted, ...] = ()
    """The executor loads their per-slot state before it runs the rows."""
    preempted: tuple[int, ...] = ()
    """Slots that were taken from their sequences, before any was given to one that was admitted."""
    moves: tuple[Move, ...] = ()
    """A plan may hold moves and no rows, or neither: then the step is to wait a moment for moves under way."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """In the order of the result: decodes, then prefills."""
        return self.decodes + self.prefills

    @property
    def num_tokens(self) -> int:
        return sum([row.length for row in self.decodes]) + sum([row.length for row in self.prefills])


NO_TOKEN = -1
"""In a result, in place of a token that was wanted: the row's logits were not finite."""

Masks = NDArray[np.uint32]  # [rows, ceil(V / 32)]
"""Which tokens a row may sample: bit t % 32 of word t // 32. Known only when the step before has been committed."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position: of the token there, and of the likeliest ones, best first."""

    token: int
    logprob: float
    rank: int
    """1: the token was the likeliest."""
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class SideOutputs:
    """What a row brought back besides tokens, as its `Wants` said."""

    logprobs: Sequence[TokenLogprobs] = ()
    """One for each sampled token."""
    prompt_logprobs: Sequence[TokenLogprobs] = ()
    """One for each of `Wants.prompt_targets`."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step brought back, ragged: `counts[i]` tokens of row i, one row after the other, in the plan's order."""

    tokens: NDArray[np.int32]  # [sum of counts]; `NO_TOKEN` where there is none
    counts: NDArray[np.int32]  # [rows]
    side: Mapping[int, SideOutputs] = field(default_factory=dict[int, SideOutputs])
    """By row, for the rows that want more than tokens."""
    moved: tuple[Moved, ...] = ()
    """Moves to and from the disk that have ended since the last result."""

    @classmethod
    def of_one_token(cls, plan: StepPlan, token: int, moved: tuple[Moved, ...] = ()) -> "StepResult":
        """Every row that wants a token gets this one: the result of a device that computes nothing."""
        decodes = len(plan.decodes)
        counts = np.empty(decodes + len(plan.prefills), np.int32)
        counts.fill(1)
        total = len(counts)
        for i, row in enumerate(plan.prefills, start=decodes):
            if not row.wants.token:
                counts[i] = 0
                total -= 1
        tokens = np.empty(total, np.int32)
        tokens.fill(token)
        return cls(tokens, counts, moved=moved)
