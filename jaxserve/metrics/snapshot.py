"""The engine at one moment, as plain data: what gauges and the dashboard show. Taken between two steps."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from jaxserve.cache.block_pool import SCRATCH_BLOCK, BlockPool
from jaxserve.core.decisions import Reason
from jaxserve.core.plan import Tier
from jaxserve.core.sequence import Sequence
from jaxserve.metrics.engine_metrics import received_s
from jaxserve.sched.scheduler import Scheduler

FREE, CACHED, USED, SHARED = range(4)
BLOCK_STATES = ("free", "cached", "used", "shared")
MOST_SHOWN = 200
"""Sequences that are shown one by one; all are counted."""


@dataclass(frozen=True, slots=True)
class Live:
    """A sequence that waits or runs. Times in seconds, up to the snapshot."""

    id: str
    tenant: str
    age_s: float
    prompt_tokens: int
    computed_tokens: int
    output_tokens: int
    blocks: int
    preemptions: int
    priority: int
    ttft_slo_s: float | None
    waits_for: Reason | None
    """None: it runs."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    now: float = 0.0
    running: Counter[str] = field(default_factory=Counter[str])
    """Sequences by tenant; likewise below."""
    waiting: Counter[str] = field(default_factory=Counter[str])
    waiting_by_reason: Counter[str] = field(default_factory=Counter[str])
    held_blocks: Counter[str] = field(default_factory=Counter[str])
    swapped: dict[str, int] = field(default_factory=dict[str, int])
    """Preempted sequences by the tier that holds their K/V."""
    tier_used: dict[str, int] = field(default_factory=dict[str, int])
    tier_capacity: dict[str, int] = field(default_factory=dict[str, int])
    blocks: tuple[int, int, int, int] = (0, 0, 0, 0)
    """How many are free, cached, used, shared."""
    kv_usage: float = 0.0
    prefix_queries: int = 0
    prefix_hits: int = 0
    failed_saves: int = 0
    failed_fetches: int = 0
    prediction_error: float | None = None
    first_waiting: dict[str, Live] = field(default_factory=dict[str, Live])
    """Of every tenant the one that came first of those that wait."""
    live: tuple[Live, ...] = ()
    """Those that wait first, in order of arrival; at most MOST_SHOWN of either."""
    block_map: bytes = b""
    """State of every KV block, by its number; empty unless asked for."""


def take(scheduler: Scheduler, now: float, *, with_map: bool = False) -> Snapshot:
    """On the engine's thread. `with_map`: also every sequence and block by itself."""
    blocks, tiers = scheduler.blocks, scheduler.blocks.tiers
    waiting, running = sorted(scheduler.waiting, key=lambda s: s.arrival), list(scheduler.running)
    reasons = {sequence: scheduler.journal.reason(sequence) or Reason.ORDER for sequence in waiting}
    by_reason = Counter(reason.value for reason in reasons.values())
    held: Counter[str] = Counter()
    for sequence in running:
        held[sequence.tenant] += len(sequence.blocks)
    states = _states(blocks.pool)
    offload = [tier for tier in (Tier.HOST, Tier.DISK) if tiers.capacity[tier]]
    firsts: dict[str, Sequence] = {}
    for sequence in waiting:
        firsts.setdefault(sequence.tenant, sequence)
    shown = (*waiting[:MOST_SHOWN], *running[:MOST_SHOWN]) if with_map else ()
    return Snapshot(
        now=now,
        running=Counter(sequence.tenant for sequence in running),
        waiting=Counter(sequence.tenant for sequence in waiting),
        waiting_by_reason=by_reason,
        held_blocks=held,
        swapped={tier.value: tiers.num_parked(tier) for tier in offload},
        tier_used={tier.value: tiers.used(tier) for tier in offload},
        tier_capacity={tier.value: tiers.capacity[tier] for tier in offload},
        blocks=(states.count(FREE), states.count(CACHED), states.count(USED), states.count(SHARED)),
        kv_usage=blocks.usage,
        prefix_queries=blocks.prefix_queries,
        prefix_hits=blocks.prefix_hits,
        failed_saves=tiers.counts.failed_saves,
        failed_fetches=tiers.counts.failed_fetches,
        prediction_error=scheduler.costs.median_error,
        first_waiting={tenant: _live(sequence, reasons[sequence], now) for tenant, sequence in firsts.items()},
        live=tuple(_live(sequence, reasons.get(sequence), now) for sequence in shown),
        block_map=states if with_map else b"",
    )


def _states(pool: BlockPool) -> bytes:
    return bytes(_state(pool, block) for block in _real_blocks(pool))


def _real_blocks(pool: BlockPool) -> Iterable[int]:
    return (block for block in range(pool.num_blocks) if block != SCRATCH_BLOCK)


def _state(pool: BlockPool, block: int) -> int:
    holders = pool.references(block)
    if holders:
        return USED if holders == 1 else SHARED
    return CACHED if pool.is_cached(block) else FREE


def _live(sequence: Sequence, reason: Reason | None, now: float) -> Live:
    return Live(
        id=sequence.id,
        tenant=sequence.tenant,
        age_s=now - received_s(sequence),
        prompt_tokens=sequence.num_prompt,
        computed_tokens=sequence.num_computed,
        output_tokens=sequence.num_outputs,
        blocks=len(sequence.blocks),
        preemptions=sequence.preemptions,
        priority=sequence.priority,
        ttft_slo_s=sequence.ttft_slo_s,
        waits_for=reason,
    )
