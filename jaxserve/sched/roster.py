"""Which sequences wait and which run, in which slot, and in what order they come.

A sequence has the same place in the order whether it waits or runs. The first difference decides:

    1. its tenant is below its guarantee         `Shares.below_guarantee`
    2. the ordering's rank of its tenant         `Ordering.rank`
    3. it yields to no expedited sequence     `Roster.expedite`
    4. the ordering's key of the sequence        `Ordering.key`
    5. its arrival number

A sequence is expedited from when admission finds that its tenant's promise is kept only if other work yields, until
its first token. Work of a lower class yields to it, and work of the same class whose tenant was promised nothing. A
tenant that `fair` owes service, and one below its guarantee, have a promise of another kind and yield to nothing.

All changes of `Sequence.status` are made here: `admit`, `preempt`, `finish`.
"""

import heapq

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.plan import Tier
from jaxserve.core.sequence import FinishReason, Sequence, Status
from jaxserve.sched.orderings.ordering import Ordering
from jaxserve.sched.shares import Shares
from jaxserve.sched.waiting import NOT_HELD, Held, WaitingQueue


class Roster:
    """The live sequences. `max_preemptions`: how often one sequence may be preempted; 0: never.

    A sequence that was preempted so often is admitted only with blocks for all the tokens it can ever have. It then
    runs to its end, so that preemption cannot go on for ever.
    """

    def __init__(
        self, ordering: Ordering, shares: Shares, blocks: BlockManager, slots: int, max_preemptions: int
    ) -> None:
        self._ordering, self._shares, self._blocks = ordering, shares, blocks
        self._max_preemptions = max_preemptions
        self._slots = list(range(slots))
        self.waiting = WaitingQueue(ordering, shares.below_guarantee, self._held)
        self._expedited: dict[Sequence, None] = {}
        self._expedited_class = 0
        """The highest class among them."""
        self.running: dict[Sequence, None] = {}
        """In the order in which they were admitted."""

    @property
    def has_slot(self) -> bool:
        return bool(self._slots)

    def precedes(self, one: Sequence, other: Sequence) -> bool:
        return self._place(one) < self._place(other)

    def came_first(self, one: Sequence, other: Sequence) -> bool:
        """`precedes` as it is when no sequence is expedited."""
        return (*self._turn(one.tenant), *self._key(one)) < (*self._turn(other.tenant), *self._key(other))

    def ahead(self, sequence: Sequence, without_lower: bool = False) -> list[int]:
        """Tokens left of each prompt that goes before the sequence, when no sequence is expedited.

        A tenant that goes before others because it was served less does so until it has caught up.

        `without_lower`: leave out what yields to it.
        """
        leads, found = dict[str, float](), list[int]()
        for s in (*self.in_prefill(), *self.waiting):
            if not self.came_first(s, sequence) or (without_lower and self.yields_to(s, sequence)):
                continue
            if s.tenant != sequence.tenant and not self._shares.below_guarantee(s.tenant):
                left = leads.get(s.tenant)
                if left is None:
                    left = self._ordering.lead(s.tenant, sequence.tenant)
                leads[s.tenant] = left - s.num_uncomputed
                if left <= 0.0:
                    continue
            found.append(s.num_uncomputed)
        return found

    def yields_to(self, one: Sequence, other: Sequence) -> bool:
        """Whether `other`, if it were expedited, would precede `one`, whatever the ordering's keys say."""
        return _is_lower(one, other.priority) and self._turn(one.tenant) >= self._turn(other.tenant)

    def lead(self, tenant: str, other: str) -> float:
        """See `Ordering.lead`."""
        return self._ordering.lead(tenant, other)

    def _place(self, sequence: Sequence) -> tuple[bool, float, Held, float, int]:
        return (*self._turn(sequence.tenant), self._held(sequence), *self._key(sequence))

    def _turn(self, tenant: str) -> tuple[bool, float]:
        return not self._shares.below_guarantee(tenant), self._ordering.rank(tenant)

    def _key(self, sequence: Sequence) -> tuple[float, int]:
        return self._ordering.key(sequence), sequence.arrival

    def _held(self, sequence: Sequence) -> Held:
        if self._expedited and _is_lower(sequence, self._expedited_class):
            return sequence.priority, sequence.promised_ttft_s is None
        return NOT_HELD

    def expedite(self, sequence: Sequence) -> None:
        """From now on, work that yields to it comes after it."""
        self._expedited[sequence] = None
        self._expedited_class = min(s.priority for s in self._expedited)

    def served(self, sequence: Sequence) -> None:
        """It has its first token, or never will: nothing yields to it any more."""
        if sequence in self._expedited:
            del self._expedited[sequence]
            self._expedited_class = min((s.priority for s in self._expedited), default=0)

    def in_prefill(self) -> list[Sequence]:
        """Running sequences with prompt tokens left, the next one last; without those whose blocks are being loaded."""
        loading = self._blocks.tiers.loading
        found = [s for s in self.running if not s.decoding and s.num_uncomputed and not loading(s)]
        found.sort(key=self._place, reverse=True)
        return found

    def preemptible(self, sequence: Sequence) -> bool:
        return sequence.preemptions < self._max_preemptions

    @property
    def preempts(self) -> bool:
        """Whether any sequence may ever be preempted."""
        return self._max_preemptions > 0

    def shortage(self, sequence: Sequence, chunk: int) -> int:
        """Blocks that are missing for `admit`; 0 or less: there are enough."""
        return self._blocks.shortage(sequence, chunk, self._reserve(sequence))

    def _reserve(self, sequence: Sequence) -> int:
        """Tokens that it must have blocks for from the start."""
        return 0 if self.preemptible(sequence) else sequence.max_len

    # --- transitions ------------------------------------------------------------------------------------------

    def admit(self, sequence: Sequence, chunk: int, now: float) -> bool:
        """A waiting sequence gets a slot and blocks for its next `chunk` tokens; False: there are not enough blocks.

        It goes on behind its tokens that are in the prefix cache or were parked. There must be a free slot.
        """
        parked = self._blocks.tiers.parked(sequence) is not None
        known = self._blocks.admit(sequence, chunk, self._reserve(sequence))
        if known is None:
            return False
        self.waiting.remove(sequence)
        self.running[sequence] = None
        sequence.status = Status.RUNNING
        sequence.slot = heapq.heappop(self._slots)
        sequence.num_computed = known
        if not parked:
            sequence.num_cached = known
        if sequence.first_scheduled_s is None:
            sequence.first_scheduled_s = now
        return True

    def preempt(self, sequence: Sequence, tier: Tier | None) -> None:
        """A running sequence gives up its blocks and its slot and waits again, at its old place.

        `tier`: where its K/V are saved; None: they are dropped and computed again. It must have no row in the plan that
        is being made, since its blocks are saved before the rows run.
        """
        self._blocks.park(sequence, tier)
        self._free_slot(sequence)
        sequence.status = Status.WAITING
        sequence.num_computed = 0
        sequence.decoding = False
        sequence.preemptions += 1
        self.waiting.push(sequence)

    def finish(self, sequence: Sequence, reason: FinishReason, now: float) -> None:
        """A waiting or running sequence ends; its blocks and its slot are free."""
        if sequence.status is Status.RUNNING:
            self._blocks.free(sequence)
            self._free_slot(sequence)
        else:
            self.waiting.remove(sequence)
            self._blocks.tiers.forget(sequence)
        self.served(sequence)
        sequence.status = Status.FINISHED
        sequence.finish_reason = reason
        sequence.finished_s = now

    def _free_slot(self, sequence: Sequence) -> None:
        heapq.heappush(self._slots, sequence.slot)
        sequence.slot = -1
        del self.running[sequence]


def _is_lower(sequence: Sequence, priority: int) -> bool:
    """Whether it yields to an expedited sequence of the class `priority`."""
    return sequence.priority > priority or (sequence.priority == priority and sequence.promised_ttft_s is None)
