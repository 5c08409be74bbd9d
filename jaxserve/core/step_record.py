"""One step as its observers see it: what was planned, what came of it, and when."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from jaxserve.core.events import Event, Refused
from jaxserve.core.plan import StepPlan


@dataclass(frozen=True, slots=True)
class StepRecord:
    """`plan` None: what happened outside steps (an abort, a stop string, a refusal, an executor that failed)."""

    events: list[Event] | list[Refused]
    now: float
    """When the step was committed, on the engine's clock."""
    plan: StepPlan | None = None
    planned_s: float = 0.0
    """When it was planned, on the same clock."""
    seconds: float = 0.0
    """How long the step had the executor: since its plan, or since the step before it ended."""
    predicted_s: float = 0.0
    """What the cost model had said; 0: it had nothing to say yet."""


class Compilation(NamedTuple):
    """A program that a step compiled, or loaded from the persistent cache, because it was not ready."""

    ended_s: float
    """On the engine's clock."""
    seconds: float


class Observer(Protocol):
    """Told of every step, in order, on the engine's thread, while the next step runs: it must be quick."""

    def observe(self, record: StepRecord) -> None: ...
