"""Which sequence is preempted when blocks run out, and what becomes of its K/V.

The scheduler says which sequences may be preempted (`Claim.candidates`); a policy picks one of them. Victims are chosen
before their rows of the plan are made, so none of them has a row in it.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.buckets import BucketTable
from jaxserve.core.move_costs import MoveCosts
from jaxserve.core.plan import Tier
from jaxserve.core.sequence import Sequence
from jaxserve.costs.model import StepFeatures
from jaxserve.costs.step_costs import StepCosts


class Fate(enum.StrEnum):
    """What becomes of a victim's K/V."""

    RECOMPUTE = "recompute"
    """Dropped: its tokens are computed again."""
    HOST = "host"
    """Parked in host memory."""
    DISK = "disk"
    """Parked on the disk."""

    @property
    def tier(self) -> Tier | None:
        return None if self is Fate.RECOMPUTE else Tier(self.value)


WAIT = "wait"
"""Beside the fates, in `prices`: the claimant waits until another sequence ends."""


class Victim(NamedTuple):
    sequence: Sequence
    fate: Fate = Fate.RECOMPUTE
    prices: Mapping[str, float] = {}
    """What each option would have cost, in device seconds. An option that was not open is absent."""


class Wait(NamedTuple):
    """No sequence is preempted: the claimant waits until another one ends."""

    spared: Sequence
    """The sequence that would have been preempted."""
    prices: Mapping[str, float]
    """Of the wait, and of each open fate of the spared one's K/V."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A sequence needs blocks that are not free."""

    claimant: Sequence
    candidates: tuple[Sequence, ...]
    """Sequences that may be preempted, at least one, in the order of admission; the claimant may be one of them."""
    missing_blocks: int
    must: bool
    """The step would have no row without a preemption: `Wait` is not an answer."""
    now: float
    running: tuple[Sequence, ...] = field(default=())
    """All sequences that hold blocks."""


class VictimPolicy(Protocol):
    def choose(self, claim: Claim) -> Victim | Wait:
        """One victim; the scheduler asks again while blocks are missing."""
        ...


class YoungestFirst(VictimPolicy):
    """Of the lowest class the one that was admitted last, into the first tier that has room, host before disk.

    The least work is lost, and the first to come are the first to finish. Needs no cost model.
    """

    def __init__(self, blocks: BlockManager) -> None:
        self._blocks = blocks

    def choose(self, claim: Claim) -> Victim:
        sequence = lowest_class(claim.candidates)[-1]
        fates = open_fates(self._blocks, sequence)
        return Victim(sequence, fates[0])


class CheapestFirst(VictimPolicy):
    """Of the lowest class the one whose return costs least for each block that it frees, by the cheapest way.

    Prices are the device seconds that an option takes from all sequences:

        recompute   the prefill of its tokens, by the step-time model
        host        its blocks to the host and back, as if no step ran beside the copies
        disk        the same, and the time to the disk and back divided by the number of running sequences, since only
                    one of their rows is missing meanwhile
        wait        the time until a sequence that is about to end has freed enough, divided in the same way

    A sequence that is about to end is preempted only if there is no other. To wait is no option if it takes too large a
    part of the time to the first token that the claimant's tenant was promised (`may_wait`). Until the step-time model
    has learnt enough, the choice is `YoungestFirst`'s.
    """

    def __init__(self, blocks: BlockManager, costs: StepCosts, moves: MoveCosts, buckets: BucketTable) -> None:
        self._blocks, self._costs, self._moves, self._buckets = blocks, costs, moves, buckets
        self._fallback = YoungestFirst(blocks)

    def choose(self, claim: Claim) -> Victim | Wait:
        if not self._costs.ready:
            return self._fallback.choose(claim)
        candidates = lowest_class(claim.candidates)
        staying = [s for s in candidates if remaining(s) > ENDING_TOKENS] or candidates
        victims = [self._priced(sequence, len(claim.running)) for sequence in reversed(staying)]
        best = min(victims, key=lambda victim: victim.prices[victim.fate] / self._freed(victim.sequence))
        wait = self._wait_s(claim)
        if wait is None:
            return best
        prices = {**best.prices, WAIT: wait}
        if not claim.must and wait < prices[best.fate]:
            return Wait(best.sequence, prices)
        return best._replace(prices=prices)

    def _priced(self, sequence: Sequence, running: int) -> Victim:
        held = self._blocks.blocks_for(sequence.num_computed)
        prices: dict[str, float] = {}
        for fate in open_fates(self._blocks, sequence):
            match fate:
                case Fate.HOST:
                    prices[fate] = self._moves.host_s(held)
                case Fate.DISK:
                    prices[fate] = self._moves.host_s(held) + self._moves.disk_s(held) / max(running, 1)
                case Fate.RECOMPUTE:
                    prices[fate] = self.recompute_s(sequence.num_computed)
        return Victim(sequence, Fate(min(prices, key=lambda name: prices[name])), prices)

    def recompute_s(self, tokens: int) -> float:
        """Seconds for the prefill of `tokens` tokens, in the largest chunks that there are."""
        total, start = 0.0, 0
        while start < tokens:
            chunk = min(tokens - start, self._buckets.max_prefill_tokens)
            features = StepFeatures.of_chunk(start, chunk, self._buckets.fit(0, chunk))
            total += self._costs.seconds(features)
            start += chunk
        return total

    def _wait_s(self, claim: Claim) -> float | None:
        """Price of the wait until a sequence that is about to end frees enough; None: there is no such sequence.

        One that lacks blocks for its own last tokens is not waited for: two of them would wait for each other.
        """
        ending = [
            remaining(s)
            for s in claim.running
            if s is not claim.claimant
            and remaining(s) <= ENDING_TOKENS
            and len(s.blocks) >= self._blocks.blocks_for(s.max_len - 1)
            and self._freed(s) >= claim.missing_blocks
        ]
        if not ending:
            return None
        wait_s = min(ending) * self._costs.last_s
        return wait_s / max(len(claim.running), 1) if may_wait(claim.claimant, claim.now + wait_s) else None

    def _freed(self, sequence: Sequence) -> int:
        """Blocks that no other sequence holds; at least 1, since prices are divided by it."""
        pool = self._blocks.pool
        return max(sum(1 for block in sequence.blocks if pool.references(block) == 1), 1)


WAITED_SHARE = 0.2
"""Part of its promised time to the first token that a sequence may wait because that is cheaper than a preemption."""
ENDING_TOKENS = 8
"""A sequence that may sample at most this many more tokens is about to end."""


def may_wait(sequence: Sequence, until_s: float) -> bool:
    """Whether a sequence may wait until then for another to end, considering the first token that was promised."""
    promised_s = sequence.promised_ttft_s
    if promised_s is None or sequence.first_token_s is not None:
        return True
    return until_s - sequence.queued_s <= WAITED_SHARE * promised_s


def remaining(sequence: Sequence) -> int:
    """Most tokens that it may still sample."""
    return sequence.max_len - len(sequence.tokens)


def lowest_class(candidates: tuple[Sequence, ...]) -> list[Sequence]:
    """The candidates with the largest priority number."""
    lowest = max(sequence.priority for sequence in candidates)
    return [sequence for sequence in candidates if sequence.priority == lowest]


def open_fates(blocks: BlockManager, sequence: Sequence) -> list[Fate]:
    """What can be done with a victim's K/V now, in the order host, disk, recompute."""
    held = blocks.blocks_for(sequence.num_computed)
    parkings = [fate for fate in (Fate.HOST, Fate.DISK) if fate.tier and 0 < held <= blocks.tiers.room(fate.tier)]
    return [*parkings, Fate.RECOMPUTE]
