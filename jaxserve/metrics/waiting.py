"""What a waiting sequence waits for, read from the scheduler's state between two steps."""

import enum

from jaxserve.core.plan import Tier
from jaxserve.core.sequence import Sequence
from jaxserve.sched.scheduler import Scheduler


class WaitingReason(enum.StrEnum):
    SLOTS = "slots"
    """`max_num_seqs` sequences run."""
    BLOCKS = "blocks"
    """No free KV blocks for its next chunk."""
    SHARE = "share"
    """Its tenant holds all the blocks it may (`kv_max`)."""
    DISK = "disk"
    """Its KV is being read from the disk."""
    TURN = "turn"
    """There is room: the policy starts it in one of the next steps."""


def why(scheduler: Scheduler, sequence: Sequence) -> WaitingReason:
    blocks, parked = scheduler.blocks, scheduler.blocks.tiers.parked(sequence)
    if parked is not None and parked.tier is Tier.DISK and parked.fetching:
        return WaitingReason.DISK
    if scheduler.num_running >= scheduler.max_num_seqs:
        return WaitingReason.SLOTS
    needed = blocks.blocks_for(min(len(sequence.tokens), scheduler.max_num_batched_tokens)) + blocks.watermark
    if needed > blocks.pool.num_free + blocks.num_cached(sequence) // blocks.block_size:
        return WaitingReason.BLOCKS
    if not scheduler.has_share(sequence):
        return WaitingReason.SHARE
    return WaitingReason.TURN
