"""What a batch policy is asked before every step, and what it answers.

A policy decides *when* sequences may be admitted and *how much* a step takes. It is made from a `PolicyContext`, sees a
`Load`, answers with `StepLimits`, and changes no sequence and no block. The scheduler packs within the answer and shows
the policy the result (`planned`).
"""

import enum
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from jaxserve.core.buckets import BucketTable
from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.sequence import Sequence
from jaxserve.core.step_record import ScheduledStep
from jaxserve.costs.step_costs import StepCosts


@dataclass(frozen=True, slots=True)
class PolicyContext:
    """What every policy is made from."""

    config: SchedulerConfig
    buckets: BucketTable
    costs: StepCosts


@dataclass(frozen=True, slots=True)
class Load:
    """The scheduler's state before a step, for policies and orderings to read."""

    now: float
    running: Collection[Sequence]
    """In the order in which they were admitted."""
    waiting: Collection[Sequence]
    oldest_s: float
    """When the sequence that has waited longest was queued; `now` if none waits."""
    expects_more: bool
    """More requests may come: False at the end of an offline run."""
    kv_usage: float
    """Share of the KV blocks that sequences hold."""
    promised: Collection[Sequence] = ()
    """Waiting sequences whose tenant was promised a time to the first token."""


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
    """Most sequences that may be admitted."""
    mode: Mode = Mode.MIXED
    no_split: bool = False
    """A prompt that does not fit into the rest of the step waits for the next one, unless no step could hold it."""


class BatchPolicy(Protocol):
    """One file each in this folder, one line in `POLICIES`."""

    def limits(self, load: Load) -> StepLimits: ...

    def prefill_tokens(self, rows: int, context: int) -> int:
        """For forecasts: about how many prompt tokens a step takes beside `rows` decodes with a total `context`."""
        ...

    def most_of_one(self, pending: Iterable[int], prompts: int) -> int:
        """For forecasts: most of a step's `prompts` tokens that one prompt takes. `pending`: tokens left of each."""
        return prompts

    def planned(self, step: ScheduledStep) -> None:
        """The step that was packed within the last limits."""
        return None

    def wake_s(self, load: Load) -> float | None:
        """When (on the clock of `load.now`) the limits may change without an arrival or an end; None: never."""
        return None
