"""Which free block loses its cached content when a block is needed and none is empty.

A retention holds the free blocks whose content the prefix cache knows. It is chosen by `prefix_retention`:

    lru         the least recently freed block goes first                                    LeastRecentlyUsed, here
    sessions    the prefix goes first whose next use is least likely for the room it takes   session_retention.py

Either evicts a prefix from its end. With several tenants, `PoolShares` says whose blocks may go: a tenant that is
within its share of the pool loses blocks only to its own requests.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection
from collections.abc import Sequence as Seq
from typing import Any, Protocol

from jaxserve.core.sequence import Sequence
from jaxserve.core.tenants import Tenants, split

PRESENT_S = 300.0
"""A tenant that used no block for so long has no share until it comes back."""


class Retention(Protocol):
    """The free blocks with known content. `place`: what `places` returned for the block; opaque to the pool."""

    def __len__(self) -> int: ...

    def __contains__(self, block: int) -> bool: ...

    def admitted(self, sequence: Sequence, links: Seq[bytes], shared: Seq[int], now: float) -> None:
        """A sequence was admitted: `links` name its blocks, and the blocks `shared` hold the first of them."""
        ...

    def places(self, sequence: Sequence, now: float) -> Seq[Any]:
        """Where each of its registered blocks belongs, in the order of the prefix. All its blocks are freed next."""
        ...

    def add(self, block: int, place: Any) -> None:
        """A block of known content is free. Blocks of one sequence come in the order of eviction: its end first."""
        ...

    def remove(self, block: int) -> None:
        """The block is held again."""
        ...

    def forget(self, block: int) -> None:
        """The block's content is not known any more. It may be one that was never added."""
        ...

    def pop(self, tenant: str) -> int:
        """Choose the block that is evicted for a block of `tenant`, and remove it. There must be one."""
        ...

    def clear(self) -> list[int]:
        """Remove all blocks, and return them."""
        ...


class PoolShares:
    """How much of the pool each tenant uses: the blocks that its sequences hold, and its cached free ones.

    The share of a tenant that is present: see `core.tenants.split`.
    """

    def __init__(self, capacity: int, tenants: Tenants | None = None) -> None:
        self._capacity, self._tenants = capacity, tenants or Tenants()
        self._used = Counter[str]()
        self._last_s: dict[str, float] = {}
        self._now = 0.0
        self._shares: dict[str, float] = {}
        self._next_s = 0.0

    def uses(self, tenant: str, blocks: int) -> None:
        """The tenant uses `blocks` more; less than 0: fewer."""
        self._used[tenant] += blocks

    def seen(self, tenant: str, now: float) -> None:
        """A request of the tenant was admitted or has ended."""
        self._now = max(self._now, now)
        if tenant not in self._shares:
            self._next_s = self._now
        self._last_s[tenant] = self._now

    def victims(self, tenant: str, holders: Collection[str]) -> Collection[str]:
        """Those of the `holders` of cached blocks that may lose one for a block of `tenant`; never none of them."""
        if len(holders) <= 1:
            return holders
        return [name for name in holders if name == tenant or self.over(name)] or holders

    def over(self, tenant: str) -> bool:
        """Whether the tenant may lose blocks to others."""
        if self._now >= self._next_s:
            self._divide()
        return tenant not in self._shares or self._used[tenant] > self._shares[tenant]

    def _divide(self) -> None:
        present = [name for name, last_s in self._last_s.items() if self._now - last_s <= PRESENT_S]
        self._last_s = {name: self._last_s[name] for name in present}
        self._next_s = min((last_s for last_s in self._last_s.values()), default=self._now) + PRESENT_S
        tenants = {name: self._tenants[name] for name in present}
        self._shares = split(self._capacity, tenants, guarantees=True)


class LeastRecentlyUsed:
    """A place is the tenant's name."""

    def __init__(self, shares: PoolShares) -> None:
        self._shares = shares
        self._blocks: dict[str, OrderedDict[int, int]] = {}
        """By tenant, the least recently freed block first, with the number of its addition."""
        self._tenant_of: dict[int, str] = {}
        self._added = 0

    def __len__(self) -> int:
        return len(self._tenant_of)

    def __contains__(self, block: int) -> bool:
        return block in self._tenant_of

    def admitted(self, sequence: Sequence, links: Seq[bytes], shared: Seq[int], now: float) -> None:
        self._shares.seen(sequence.tenant, now)

    def places(self, sequence: Sequence, now: float) -> Seq[str]:
        self._shares.seen(sequence.tenant, now)
        return [sequence.tenant] * sequence.num_registered

    def add(self, block: int, place: str) -> None:
        self._added += 1
        self._tenant_of[block] = place
        blocks = self._blocks.get(place)
        if blocks is None:
            blocks = self._blocks[place] = OrderedDict()
        blocks[block] = self._added
        self._shares.uses(place, 1)

    def remove(self, block: int) -> None:
        tenant = self._tenant_of.pop(block)
        blocks = self._blocks[tenant]
        del blocks[block]
        if not blocks:
            del self._blocks[tenant]
        self._shares.uses(tenant, -1)

    def forget(self, block: int) -> None:
        if block in self:
            self.remove(block)

    def pop(self, tenant: str) -> int:
        victims = self._shares.victims(tenant, self._blocks)
        _, block = min((added, block) for block, added in (next(iter(self._blocks[v].items())) for v in victims))
        self.remove(block)
        return block

    def clear(self) -> list[int]:
        blocks = list(self._tenant_of)
        for block in blocks:
            self.remove(block)
        return blocks
