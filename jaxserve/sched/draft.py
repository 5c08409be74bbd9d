"""A step while it is packed: its rows so far, and why each other sequence has none."""

from collections import Counter
from dataclasses import dataclass, field

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.decisions import Chunk, Decision, Reason
from jaxserve.core.plan import Row, Tier
from jaxserve.core.sequence import Sequence, Status
from jaxserve.core.step_record import ScheduledStep
from jaxserve.sched.chunking import LongPromptGuard
from jaxserve.sched.journal import Journal
from jaxserve.sched.policies.policy import StepLimits
from jaxserve.sched.roster import Roster


@dataclass(slots=True)
class Draft:
    """Made by the scheduler with a policy's limits, filled by `Packer`; `Preempter` notes what it did for it."""

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
    claimant: Sequence | None = None
    """The waiting sequence for which others were preempted."""
    stalled: bool = False
    """A decode waits for a block."""
    reasons: dict[Sequence, Reason] = field(default_factory=dict[Sequence, Reason])
    """Why a sequence has no row. Of the waiting ones only those whose turn it was."""
    skipped_tenants: set[str] = field(default_factory=set[str])
    """Tenants that wait for something that the others can do without: the others go before them."""
    at_limit: set[str] = field(default_factory=set[str])
    """Those of them that a limit of their own keeps out."""

    @property
    def short(self) -> bool:
        """There were not enough blocks for the sequences that run."""
        return bool(self.preempted) or self.stalled

    @property
    def admissions_left(self) -> int:
        """Sequences that may still be admitted. While blocks are short, only the claimant of the preemptions."""
        if not self.short:
            most = self.limits.admit
        elif self.claimant is not None and self.claimant.status is Status.WAITING:
            most = 1
        else:
            most = 0
        return most - len(self.admitted)


def explain(draft: Draft, roster: Roster, slots: int, journal: Journal) -> None:
    """Give the journal the sequences with chunks, the reasons of those without a row, and the reason of all others.

    `slots`: `StepLimits.admit` of a policy that admits without a limit.
    """
    reasons, admits = draft.reasons, draft.limits.admit > 0
    head = roster.waiting.first(draft.skipped_tenants) if admits else None
    if head is not None and head not in reasons:
        at_limit = draft.limits.admit < slots and len(draft.admitted) >= draft.limits.admit
        reasons[head] = Reason.BLOCKS if draft.short else Reason.GATE if at_limit else Reason.BUDGET
    chunks = list(draft.chunks)
    for sequence in chunks:
        reasons.pop(sequence, None)
    others = Reason.ORDER if admits else Reason.GATE
    journal.packed(draft.now, reasons, others, chunks, len(roster.waiting))


def record(step: ScheduledStep, blocks: BlockManager) -> Decision:
    """The step's entry in the journal, so far."""
    plan, pool, tiers = step.plan, blocks.pool, blocks.tiers
    return Decision(
        step=plan.step,
        planned_s=step.planned_s,
        bucket=plan.bucket,
        decode_rows=len(plan.decodes),
        chunks=tuple([Chunk(s.id, row.start, row.length) for s, row in zip(step.prefills, plan.prefills, strict=True)]),
        admitted=tuple([sequence.id for sequence in step.admitted]),
        moves=dict(Counter(f"{move.source}>{move.target}" for move in plan.moves)) if plan.moves else {},
        blocks_held=pool.capacity - pool.num_free,
        blocks_cached=pool.num_cached,
        blocks=pool.capacity,
        host_blocks=tiers.used(Tier.HOST),
        disk_blocks=tiers.used(Tier.DISK),
    )
