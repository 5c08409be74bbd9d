"""Which part of the KV blocks and slots is a tenant's own, and which running sequences may be preempted for it.

Two settings give a tenant a part of its own:

    kv_guaranteed    a share of the KV blocks
    weight           with the ordering `fair`: of the slots, and of the blocks that no guarantee takes, in proportion to
                     the weights of the tenants that have waiting or running sequences

    blocks    |-- chat: guaranteed --|-- batch: weight 2 ----------|-- eval: weight 1 --|

What a tenant does not use is lent to the others and taken back by preemption. A tenant's own part holds its oldest
sequences; those beyond it are borrowed, and only they can be preempted for another tenant. So the oldest sequences of
every tenant run to their ends, however often the younger ones are preempted. Without a part of its own a tenant has
borrowed all that it holds.
"""

from collections import Counter
from collections.abc import Collection, Iterable

from jaxserve.core.sequence import Sequence
from jaxserve.core.tenants import Tenants, split


class Shares:
    """`fair`: weights give parts. `blocks`, `slots`: how many there are."""

    def __init__(self, tenants: Tenants, *, fair: bool, blocks: int, slots: int) -> None:
        self._tenants, self.fair = tenants, fair
        self._blocks, self._slots = blocks, slots
        self._guaranteed = {t.name: int(t.kv_guaranteed * blocks) for t in tenants if t.kv_guaranteed}
        self._block_parts: dict[str, int] = dict(self._guaranteed)
        self._slot_parts: dict[str, int] = {}
        self._active: frozenset[str] = frozenset()
        self._below: set[str] = set()

    def refresh(self, running: Iterable[Sequence], active: Collection[str]) -> None:
        """Before a step is packed. `active`: the tenants that have waiting or running sequences."""
        if self._guaranteed:
            held = _held_blocks(running)
            self._below = {name for name, guaranteed in self._guaranteed.items() if held[name] < guaranteed}
        if self.fair and active != self._active:
            self._active = frozenset(active)
            tenants = {name: self._tenants[name] for name in self._active}
            self._block_parts = {
                name: max(int(min(part, tenants[name].kv_max * self._blocks)), 1)
                for name, part in split(self._blocks, tenants, guarantees=True).items()
            }
            slots = split(self._slots, tenants, guarantees=False)
            self._slot_parts = {name: max(int(part), 1) for name, part in slots.items()}

    def below_guarantee(self, tenant: str) -> bool:
        """Whether the tenant held less than its guarantee at the last `refresh`: it then goes before all others."""
        return tenant in self._below

    def within(self, tenant: str, more: int, running: Iterable[Sequence]) -> bool:
        """Whether the tenant, with `more` blocks more, holds no more than its own part."""
        part = self._block_parts.get(tenant)
        return part is not None and sum(len(s.blocks) for s in running if s.tenant == tenant) + more <= part

    # --- what may be preempted --------------------------------------------------------------------------------

    def of_lower_class(self, claimant: Sequence, running: Collection[Sequence]) -> list[Sequence]:
        """Running sequences of a lower class than a waiting one: of its own tenant, or borrowed by another one."""
        lower = [s for s in running if s.priority > claimant.priority]
        if not lower:
            return lower
        borrowed = self._borrowed(running)
        return [s for s in lower if s.tenant == claimant.tenant or s in borrowed]

    def to_take_back(
        self, claimant: Sequence, needed: int, running: Collection[Sequence], *, slot: bool, blocks: bool
    ) -> list[Sequence]:
        """What other tenants borrowed and a waiting sequence may take back: with it, its tenant is within its part.

        `needed`: blocks that it needs. `slot`, `blocks`: which of them it lacks.
        """
        by_slots = slot and self.fair
        if self.fair and len(self._active) < 2:
            return []
        if by_slots:
            part = self._slot_parts.get(claimant.tenant, 0)
            entitled = sum(1 for s in running if s.tenant == claimant.tenant) < part
            if blocks:  # a slot alone would be taken for nothing
                entitled = entitled and self.within(claimant.tenant, needed, running)
        else:
            entitled = self.within(claimant.tenant, needed, running)
        if not entitled:
            return []
        borrowed = self._borrowed(running, by_slots=by_slots)
        return [s for s in running if s.tenant != claimant.tenant and s in borrowed]

    def for_growth(self, claimant: Sequence, running: Collection[Sequence]) -> list[Sequence]:
        """Running sequences that may be preempted so that another one can grow; itself among them.

        A claimant whose tenant is within its part may preempt what other tenants borrowed, of any class, and its own
        tenant's sequences of its class or a lower one. Any other claimant may preempt itself, and sequences of its
        class or a lower one that are its own tenant's or borrowed.
        """
        within = self.within(claimant.tenant, 1, running)
        borrowed = self._borrowed(running)
        found: list[Sequence] = []
        for s in running:
            lower = s.priority >= claimant.priority
            own, lent = s.tenant == claimant.tenant, s in borrowed
            if s is claimant or (own and lower) or (lent and not own and (within or lower)):
                found.append(s)
        return found

    def _borrowed(self, running: Collection[Sequence], *, by_slots: bool = False) -> set[Sequence]:
        """The sequences that hold more than their tenants' parts, the older ones of each tenant counted first."""
        parts = self._slot_parts if by_slots else self._block_parts
        if not parts:
            return set(running)
        held, borrowed = Counter[str](), set[Sequence]()
        for s in sorted(running, key=_arrival):
            held[s.tenant] += 1 if by_slots else len(s.blocks)
            if held[s.tenant] > parts.get(s.tenant, 0):
                borrowed.add(s)
        return borrowed


def _held_blocks(running: Iterable[Sequence]) -> Counter[str]:
    held = Counter[str]()
    for sequence in running:
        held[sequence.tenant] += len(sequence.blocks)
    return held


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival
