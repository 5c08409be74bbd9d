"""Who gives way when blocks run out, and what becomes of its K/V.

The scheduler says who may be displaced (`Claim.candidates`); a policy picks one of them. Victims are chosen before any
row of the plan is made, so none of them has a row in it.
"""

import enum
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.plan import Tier
from jaxserve.core.sequence import Sequence


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


class Victim(NamedTuple):
    sequence: Sequence
    fate: Fate = Fate.RECOMPUTE


@dataclass(frozen=True, slots=True)
class Claim:
    """Somebody needs blocks that are not free."""

    claimant: Sequence
    candidates: tuple[Sequence, ...]
    """Who may be displaced for it, in the order in which they were admitted; the claimant itself may be among them."""
    missing_blocks: int
    must: bool
    """Nothing moves unless somebody gives way: None is no answer."""
    now: float


class VictimPolicy(Protocol):
    def choose(self, claim: Claim) -> Victim | None:
        """One victim; the scheduler asks again while blocks are missing. None: the claimant waits."""
        ...


class YoungestFirst(VictimPolicy):
    """The one that was admitted last: the least work is lost, and who came first finishes first.

    Its K/V are parked in the first tier of `blocks` that has room, host memory before the disk.
    """

    def __init__(self, blocks: BlockManager) -> None:
        self._blocks = blocks

    def choose(self, claim: Claim) -> Victim:
        sequence = claim.candidates[-1]
        wanted = self._blocks.blocks_for(sequence.num_computed)
        for fate in (Fate.HOST, Fate.DISK):
            if fate.tier is not None and self._blocks.tiers.room(fate.tier) >= wanted:
                return Victim(sequence, fate)
        return Victim(sequence, Fate.RECOMPUTE)
