"""What a batch policy is asked before every step, and what it answers.

A policy decides *when* sequences may join and *how much* a step takes; it never touches a sequence or a block. The
scheduler packs within the answer. `planned` tells the policy what became of it.
"""

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from jaxserve.core.step_record import ScheduledStep
from jaxserve.sched.load import Load


class Mode(enum.Enum):
    """Which kinds of rows share a step."""

    MIXED = "mixed"
    """Every decode, then prompt chunks with what is left of the budget."""
    PREFILL_FIRST = "prefill first"
    """Prompts alone while any can go, decodes otherwise."""
    ALTERNATE = "alternate"
    """One kind a step, in turn: neither starves the other."""


@dataclass(frozen=True, slots=True)
class StepLimits:
    """What the next step may take."""

    tokens: int
    """Most tokens, decode rows and prompt chunks together."""
    chunk: int
    """Most prompt tokens of one sequence."""
    admit: int
    """Most sequences that may leave the queue."""
    mode: Mode = Mode.MIXED
    whole: bool = False
    """A prompt that does not fit what is left of the step waits for the next one, unless no step could hold it."""


class BatchPolicy(Protocol):
    """One file each in this folder, one line in `POLICIES`."""

    def limits(self, load: Load) -> StepLimits: ...

    def prefill_tokens(self, rows: int, context: int) -> int:
        """About how many prompt tokens a step takes beside so many decode rows with so much context in all: for
        forecasts."""
        ...

    def most_of_one(self, pending: Iterable[int], prompts: int) -> int:
        """Most of a step's `prompts` tokens that one prompt takes while so many are left of each: for forecasts."""
        return prompts

    def planned(self, step: ScheduledStep) -> None:
        """The step that was packed within the last limits."""
        return None

    def wake_s(self, load: Load) -> float | None:
        """When (on the clock of `load.now`) the limits may change though nothing comes or ends; None: never."""
        return None
