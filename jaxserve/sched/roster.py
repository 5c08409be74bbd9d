"""Who waits and who runs, in which slot, and who comes before whom.

A sequence's place is the same whether it waits or runs: first its tenant's standing (one that holds less than what is
its own goes before all others), then the ordering's rank of the tenant and key of the sequence, then its arrival.
"""

import heapq

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.sequence import Sequence, Status
from jaxserve.sched.orderings.ordering import Ordering
from jaxserve.sched.tenant_ledger import TenantLedger
from jaxserve.sched.waiting import WaitingQueue


class Roster:
    """The only writer of `Sequence.status` and `Sequence.slot`."""

    def __init__(self, ordering: Ordering, ledger: TenantLedger, blocks: BlockManager, slots: int) -> None:
        self._ordering, self._ledger, self._blocks = ordering, ledger, blocks
        self._slots = list(range(slots))
        self.waiting = WaitingQueue(ordering, ledger.standing)
        self.running: dict[Sequence, None] = {}
        """In the order in which they were admitted."""

    @property
    def has_slot(self) -> bool:
        return bool(self._slots)

    def precedes(self, one: Sequence, other: Sequence) -> bool:
        return self._place(one) < self._place(other)

    def _place(self, sequence: Sequence) -> tuple[float, float, float, int]:
        ordering, tenant = self._ordering, sequence.tenant
        return self._ledger.standing(tenant), ordering.rank(tenant), ordering.key(sequence), sequence.arrival

    def begun(self) -> list[Sequence]:
        """Running sequences still in their prompts, the next one last; not those whose blocks are being loaded."""
        loading = self._blocks.tiers.loading
        begun = [s for s in self.running if not s.decoding and s.num_uncomputed and not loading(s)]
        begun.sort(key=self._place, reverse=True)
        return begun

    def join(self, sequence: Sequence) -> None:
        """A waiting sequence gets a slot; it has its first blocks."""
        self.waiting.remove(sequence)
        self.running[sequence] = None
        sequence.status = Status.RUNNING
        sequence.slot = heapq.heappop(self._slots)

    def send_back(self, sequence: Sequence) -> None:
        """A running sequence gives its blocks and its slot back and waits again, at its old place."""
        self._release(sequence)
        sequence.status = Status.WAITING
        self.waiting.push(sequence)

    def leave(self, sequence: Sequence) -> None:
        """It ends, wherever it is: what it holds is free."""
        if sequence.status is Status.RUNNING:
            self._release(sequence)
        else:
            self.waiting.remove(sequence)
            self._blocks.tiers.forget(sequence)
        sequence.status = Status.FINISHED

    def _release(self, sequence: Sequence) -> None:
        self._blocks.free(sequence)
        heapq.heappush(self._slots, sequence.slot)
        sequence.slot = -1
        del self.running[sequence]
