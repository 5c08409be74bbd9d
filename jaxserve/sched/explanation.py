"""Why a step is as it is: one reason for everybody without a row, and the step's record for the journal."""

from collections import Counter

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.decisions import Chunk, Decision, Reason
from jaxserve.core.plan import StepPlan, Tier
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
    chunks = [row.sequence for row in draft.prefills]
    for sequence in chunks:
        held.pop(sequence, None)
    others = Reason.ORDER if joined else Reason.GATE
    journal.packed(draft.now, held, others, chunks, len(roster.waiting))


def record(plan: StepPlan, blocks: BlockManager, now: float) -> Decision:
    pool, tiers = blocks.pool, blocks.tiers
    return Decision(
        step=plan.step,
        planned_s=now,
        bucket=plan.bucket,
        decode_rows=len(plan.decodes),
        chunks=tuple([Chunk(row.sequence.id, row.start, row.length) for row in plan.prefills]),
        admitted=tuple([sequence.id for sequence in plan.admitted]),
        moves=dict(Counter(f"{move.source}>{move.target}" for move in plan.moves)) if plan.moves else {},
        blocks_held=pool.capacity - pool.num_free,
        blocks_cached=pool.num_cached,
        blocks=pool.capacity,
        host_blocks=tiers.used(Tier.HOST),
        disk_blocks=tiers.used(Tier.DISK),
    )
