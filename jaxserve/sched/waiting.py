"""The waiting sequences, sorted: a heap for each class of each tenant, in the ordering's order.

The ordering is asked when the first sequence of a tenant comes to wait, since it may count what each tenant is served.

Sequences of one heap are alike in all that decides before the key. A sequence that leaves from the middle (an abort)
stays in its heap as a dead entry until that is at the top.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from math import inf

from jaxserve.core.sequence import Sequence
from jaxserve.sched.orderings.ordering import Ordering

_Entry = tuple[float, int, int, Sequence, int]
"""(key, arrival number, serial number of the entry, sequence, tokens): no two are equal before the sequence.

`tokens`: what the sequence counts in `WaitingQueue.tokens`. Its own may grow while it waits: it was preempted while its
next token was being sampled.
"""
_Heap = tuple[str, int]
"""(tenant, class)."""
Held = tuple[float, bool]
"""How far a sequence is held back: by its class, and in its class by whether its tenant was promised nothing."""
NOT_HELD: Held = (-inf, False)


class WaitingQueue:
    """Two questions are asked before the ordering's key decides.

    `goes_first(tenant)`: tenants for which it is true go before the others, whatever the ordering says.
    `held(sequence)`: among tenants of equal rank, the smaller one goes first. It is the same for all sequences of a
    tenant and a class.
    """

    def __init__(
        self,
        ordering: Ordering,
        goes_first: Callable[[str], bool] = lambda tenant: False,
        held: Callable[[Sequence], Held] = lambda sequence: NOT_HELD,
    ) -> None:
        self._ordering, self._goes_first, self._held = ordering, goes_first, held
        self._epoch = ordering.epoch
        self._heaps: dict[_Heap, list[_Entry]] = {}
        self._entries: dict[Sequence, _Entry] = {}
        self._promised: dict[Sequence, None] = {}
        self._serial = 0
        self._counts: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self.tokens = 0
        """Known tokens of all sequences when they began to wait: prompts, and outputs from before a preemption."""

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._entries)

    def __contains__(self, sequence: object) -> bool:
        return sequence in self._entries

    @property
    def sequences(self) -> Collection[Sequence]:
        return self._entries.keys()

    @property
    def promised(self) -> Collection[Sequence]:
        """Those whose tenant was promised a time to the first token."""
        return self._promised.keys()

    def push(self, sequence: Sequence) -> None:
        self._serial += 1
        known = self._entries.get(sequence)
        tokens, tenant = len(sequence.tokens) if known is None else known[4], sequence.tenant
        if known is None:
            if not self._counts[tenant]:
                self._ordering.reactivated(tenant, self.tenants)
            self._counts[tenant] += 1
            self._tokens[tenant] += tokens
            self.tokens += tokens
        entry = (self._ordering.key(sequence), sequence.arrival, self._serial, sequence, tokens)
        self._entries[sequence] = entry
        if sequence.promised_ttft_s is not None:
            self._promised[sequence] = None
        heapq.heappush(self._heaps.setdefault((sequence.tenant, sequence.priority), []), entry)

    def remove(self, sequence: Sequence) -> None:
        self._promised.pop(sequence, None)
        tokens = self._entries.pop(sequence)[4]
        self.tokens -= tokens
        self._tokens[sequence.tenant] -= tokens
        self._counts[sequence.tenant] -= 1

    def count(self, tenant: str) -> int:
        """How many sequences of a tenant wait."""
        return self._counts[tenant]

    def tokens_of(self, tenant: str) -> int:
        """What a tenant's sequences count in `tokens`."""
        return self._tokens[tenant]

    @property
    def tenants(self) -> list[str]:
        """Those of which a sequence waits."""
        return list(self.counts())

    def counts(self) -> dict[str, int]:
        """How many wait, by tenant; tenants without any are left out."""
        return {tenant: count for tenant, count in self._counts.items() if count}

    def first(self, skipped: Collection[str] = ()) -> Sequence | None:
        """The next sequence of all tenants but the `skipped` ones; None if there is none."""
        if self._ordering.epoch != self._epoch:
            self._sort_again()
        best: Sequence | None = None
        best_place: tuple[bool, float, Held, float, int] | None = None
        for name in list(self._heaps):
            tenant = name[0]
            if tenant in skipped:
                continue
            entry = self._head(name)
            if entry is None:
                continue
            key, arrival, _, sequence, _ = entry
            place = not self._goes_first(tenant), self._ordering.rank(tenant), self._held(sequence), key, arrival
            if best_place is None or place < best_place:
                best, best_place = sequence, place
        return best

    def _head(self, name: _Heap) -> _Entry | None:
        """The first live entry of a heap. A heap without one is removed."""
        heap = self._heaps[name]
        while heap:
            if self._entries.get(heap[0][3]) is heap[0]:
                return heap[0]
            heapq.heappop(heap)
        del self._heaps[name]
        return None

    def _sort_again(self) -> None:
        self._epoch = self._ordering.epoch
        waiting = list(self._entries)
        self._heaps.clear()
        for sequence in waiting:
            self.push(sequence)
