"""One step on the host: its plan with the sequences behind it, and, for observers, what came of it and when."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from jaxserve.core.events import Event
from jaxserve.core.plan import StepPlan
from jaxserve.core.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Occupancy:
    """How full the engine was when a step had been packed."""

    running: int = 0
    """Sequences."""
    waiting: Mapping[str, int] = field(default_factory=dict[str, int])
    """Sequences that still wait, by tenant; tenants without any are left out."""
    kv_usage: float = 0.0
    """Share of the KV blocks that sequences hold."""


@dataclass(frozen=True, slots=True)
class ScheduledStep:
    """A plan, and the sequences that it names by their slots: these stay with the scheduler."""

    plan: StepPlan
    sequences: tuple[Sequence, ...]
    """Of the plan's rows, in their order."""
    admitted: tuple[Sequence, ...]
    preempted: tuple[Sequence, ...]
    planned_s: float
    """When it was planned, on the engine's clock."""
    occupancy: Occupancy

    @property
    def decodes(self) -> tuple[Sequence, ...]:
        return self.sequences[: len(self.plan.decodes)]

    @property
    def prefills(self) -> tuple[Sequence, ...]:
        return self.sequences[len(self.plan.decodes) :]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What observers are shown. `step` None: what happened outside steps (an abort, a stop string, a refusal, an
    executor that failed)."""

    events: list[Event]
    now: float
    """When the step was committed, on the engine's clock."""
    step: ScheduledStep | None = None
    seconds: float = 0.0
    """How long the step had the executor: since its plan, or since the step before it ended."""
    predicted_s: float = 0.0
    """What the cost model had said; 0: it had nothing to say yet."""

    @property
    def plan(self) -> StepPlan | None:
        return None if self.step is None else self.step.plan


class Compilation(NamedTuple):
    """A program that a step compiled, or loaded from the persistent cache, because it was not ready."""

    ended_s: float
    """On the engine's clock."""
    seconds: float


class Observer(Protocol):
    """Is called with every step, in order, on the engine's thread, while the next step runs: it must be quick."""

    def observe(self, record: StepRecord) -> None: ...
