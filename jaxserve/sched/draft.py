"""A step while it is packed: what is in it so far, and who is not, with the reason."""

from dataclasses import dataclass, field

from jaxserve.core.decisions import Reason
from jaxserve.core.plan import Row
from jaxserve.core.sequence import Sequence, Status
from jaxserve.sched.long_prompts import LongPromptGuard
from jaxserve.sched.policies.policy import StepLimits


@dataclass(slots=True)
class Draft:
    """Begun by the scheduler within a policy's limits; `Displacement` makes room in it and `Packer` fills it."""

    now: float
    limits: StepLimits
    decodes: list[Row] = field(default_factory=list[Row])
    decoding: list[Sequence] = field(default_factory=list[Sequence])
    """The sequence of each decode row."""
    prefills: list[Row] = field(default_factory=list[Row])
    chunks: dict[Sequence, int] = field(default_factory=dict[Sequence, int])
    """Prompt tokens of each sequence that has some in this step: its prefill rows, in order."""
    budget: int = 0
    """Prompt tokens that may still be added."""
    guard: LongPromptGuard = field(init=False)
    admitted: list[Sequence] = field(default_factory=list[Sequence])
    preempted: list[Sequence] = field(default_factory=list[Sequence])
    freed_slots: list[int] = field(default_factory=list[int])
    """Of the preempted ones."""
    way_for: Sequence | None = None
    """Who waits, and has had others displaced: it alone may join."""
    stalled: bool = False
    """A decode waits for a block."""
    held: dict[Sequence, Reason] = field(default_factory=dict[Sequence, Reason])
    """Who has no row, and why; of those that wait only who was next."""
    passed: set[str] = field(default_factory=set[str])
    """Tenants whose turn or share it is not: the others need not wait for them."""

    @property
    def places(self) -> int:
        """How many may join: nobody while blocks are short, but for whom others have made way."""
        short = self.preempted or self.stalled
        return self.limits.admit if not short else int(self.way_for is not None)

    @property
    def way_is_done(self) -> bool:
        """Somebody gave way in this step, and whoever it was for has joined, or runs already and grows."""
        return bool(self.preempted) and (self.way_for is None or self.way_for.status is Status.RUNNING)
