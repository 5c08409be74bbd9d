"""Why a step is as it is: one reason for everybody without a row, and the step's record for the journal."""

from collections import Counter

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.decisions import Chunk, Decision, Reason
from jaxserve.core.plan import Tier
from jaxserve.core.step_record import ScheduledStep
from jaxserve.sched.draft import Draft
from jaxserve.sched.journal import Journal
from jaxserve.sched.roster import Roster


def explain(draft: Draft, roster: Roster, slots: int, journal: Journal) -> None:
    """Tell the journal who has a chunk, who was held up by what, and what keeps all the others waiting.

    `slots`: how many may join when the policy does not hold anybody back.
    """
    held, joined = draft.held, draft.limits.admit > 0
    head = roster.waiting.first(draft.passed) if joined else None
    if head is not None and head not in held:
        short = draft.preempted or draft.stalled
        full = draft.limits.admit < slots and len(draft.admitted) >= draft.limits.admit
        held[head] = Reason.BLOCKS if short else Reason.GATE if full else Reason.BUDGET
    if not draft.prefills:
        for sequence in roster.begun():
            held.setdefault(sequence, Reason.BUDGET)
    chunks = list(draft.chunks)
    for sequence in chunks:
        held.pop(sequence, None)
    others = Reason.ORDER if joined else Reason.GATE
    journal.packed(draft.now, held, others, chunks, len(roster.waiting))


def record(step: ScheduledStep, blocks: BlockManager) -> Decision:
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
