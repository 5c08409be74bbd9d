"""Who gives way when blocks run out, and what becomes of its K/V.

The scheduler says who may be displaced (`Claim.candidates`); a policy picks one of them. Victims are chosen before any
row of the plan is made, so none of them has a row in it.
"""

import enum
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from jaxserve.core.sequence import Sequence


class Fate(enum.StrEnum):
    """What becomes of a victim's K/V."""

    RECOMPUTE = "recompute"
    """Dropped: its tokens are computed again."""


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
    """The one that was admitted last: the least work is lost, and who came first finishes first."""

    def choose(self, claim: Claim) -> Victim:
        return Victim(claim.candidates[-1])
