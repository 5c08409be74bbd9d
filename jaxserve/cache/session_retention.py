"""Keeps the prefixes that are likely to be used again: sessions are recognised by what they resend.

Free blocks with known content belong to *stretches*: consecutive blocks of one prefix, which form a tree. A stretch is
known by the hash of its last block, its mark, also after its blocks are evicted, so that a session that comes back
teaches when sessions come back, whether it found anything or not.

    system prompt        ---+---  session 1, three turns so far        turn 4 begins with the mark of turn 3:
    (STEM: two went on      |                                          the stretch becomes as long as turn 4
     differently)           +---  session 2, one turn (NEW)

A request that uses only a part of a stretch divides it (a fork). A stretch is evicted after those behind it, and from
its end. Which one goes is a matter of its `Kind` and its age, which `ReturnTimes` values for each tenant.

Costs: a lookup a block when a sequence is admitted and freed, and constant work a block that is added, removed or
evicted. Choosing a stretch looks at each kind and age bucket that has one, not at each stretch.
"""

from collections import OrderedDict
from collections.abc import Sequence as Seq

from jaxserve.cache.retention import PoolShares
from jaxserve.cache.return_times import AGES, BEGINS_S, Kind, ReturnTimes
from jaxserve.core.sequence import Sequence

GHOSTS = 4096
"""Stretches without blocks that are remembered of a tenant."""


class Stretch:
    """Consecutive blocks of a prefix, up to its first `end` blocks: a node of a tree, whose root holds nothing."""

    __slots__ = ("age", "blocks", "end", "in_use", "kind", "last_s", "leaning", "mark", "parent", "shelf")

    def __init__(self, mark: bytes, end: int, parent: "Stretch | None", kind: Kind, shelf: "_Shelf") -> None:
        self.mark, self.end, self.parent, self.kind, self.shelf = mark, end, parent, kind, shelf
        self.leaning = 0
        """Resident stretches right behind it: they would be useless without this one."""
        self.blocks: OrderedDict[int, None] = OrderedDict()
        """Its free blocks, the next one to be evicted first."""
        self.last_s = 0.0
        self.age = 0
        """Its bucket of `ReturnTimes`."""
        self.in_use = False
        """A sequence that began with it was admitted and has not ended."""

    @property
    def resident(self) -> bool:
        """It has free blocks, or a stretch behind it has."""
        return bool(self.blocks) or self.leaning > 0

    @property
    def row(self) -> int:
        """Where its shelf has it."""
        return self.kind * AGES + self.age


class _Shelf:
    """The stretches of one tenant, in rows of equal kind and age."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.times = ReturnTimes()
        self.num_blocks = 0
        self.ready: dict[int, OrderedDict[Stretch, None]] = {}
        """Stretches that have blocks, and none behind them, by row. No row is empty."""
        self.ghosts: OrderedDict[Stretch, None] = OrderedDict()
        """Stretches without blocks."""
        self._rows: list[OrderedDict[Stretch, None]] = [OrderedDict() for _ in range(len(Kind) * AGES)]
        """All stretches, in each row those used least recently first."""
        self._due_s = 0.0
        """When the next stretch changes its row."""

    def put(self, stretch: Stretch, now: float) -> None:
        """The stretch was used now."""
        stretch.shelf, stretch.last_s, stretch.age = self, now, 0
        self._rows[stretch.row][stretch] = None
        self._due_s = min(self._due_s, now + BEGINS_S[1])
        if stretch.blocks and not stretch.leaning:
            self.set_ready(stretch)

    def take(self, stretch: Stretch) -> None:
        del self._rows[stretch.row][stretch]
        self.set_unready(stretch)

    def set_ready(self, stretch: Stretch) -> None:
        row = self.ready.get(stretch.row)
        if row is None:
            row = self.ready[stretch.row] = OrderedDict()
        row[stretch] = None

    def set_unready(self, stretch: Stretch) -> None:
        row = self.ready.get(stretch.row)
        if row is not None and stretch in row:
            del row[stretch]
            if not row:
                del self.ready[stretch.row]

    def advance(self, now: float) -> None:
        """Stretches grow older."""
        if now < self._due_s:
            return
        self._due_s = now + BEGINS_S[-1]
        for kind in Kind:
            for age in range(AGES - 1):
                row, ends_s = self._rows[kind * AGES + age], BEGINS_S[age + 1]
                while row:
                    stretch = next(iter(row))
                    if now - stretch.last_s < ends_s:
                        self._due_s = min(self._due_s, stretch.last_s + ends_s)
                        break
                    self.take(stretch)
                    stretch.age = age + 1
                    self._rows[stretch.row][stretch] = None
                    if stretch.blocks and not stretch.leaning:
                        self.set_ready(stretch)
                    if not stretch.in_use:
                        self.times.reached(kind, age + 1)

    def least(self, now: float) -> tuple[float, Stretch] | None:
        """What the stretch that is worth least is worth, and the stretch; None: no stretch has blocks."""
        if not self.ready:
            return None
        self.advance(now)
        values = self.times.values
        value, row = min((values[row // AGES][row % AGES], row) for row in self.ready)
        kind, age = divmod(row, AGES)
        rises = age + 1 < AGES and values[kind][age + 1] > value
        found = self.ready[row]
        return value, next(reversed(found)) if rises else next(iter(found))


class SessionRetention:
    """A place is a block's stretch."""

    def __init__(self, shares: PoolShares) -> None:
        self._shares = shares
        self._shelves: dict[str, _Shelf] = {}
        self._root = Stretch(b"", 0, None, Kind.STEM, _Shelf(""))
        self._marks: dict[bytes, Stretch] = {}
        self._stretch_of: dict[int, Stretch] = {}
        """Of each block that was added, until it is evicted."""
        self._victim: Stretch | None = None
        """The stretch that was chosen last: the choice stands while it has blocks and its tenant may lose them."""
        self._num_blocks = 0
        self._now = 0.0

    def __len__(self) -> int:
        return self._num_blocks

    def __contains__(self, block: int) -> bool:
        stretch = self._stretch_of.get(block)
        return stretch is not None and block in stretch.blocks

    # --- sequences --------------------------------------------------------------------------------------------

    def admitted(self, sequence: Sequence, links: Seq[bytes], shared: Seq[int], now: float) -> None:
        shelf, last = self._enter(sequence, now), self._root
        for stretch in self._path(links):
            self._return(stretch, resumed=sequence.preemptions > 0)
            last = stretch
        if last is self._root:
            shelf.times.missed()
        if len(shared) > last.end:
            self._fork(last, links[len(shared) - 1], shared, shelf)

    def places(self, sequence: Sequence, now: float) -> list[Stretch]:
        shelf, count = self._enter(sequence, now), sequence.num_registered
        if not count:
            return []
        path = self._path(sequence.hashes[:count])
        last = path[-1] if path else self._root
        if last.end < count:
            if last is self._root or last.leaning or last.kind is Kind.STEM:
                kind = Kind.NEW if sequence.request.session_id is None else Kind.NAMED
                path.append(self._grow_tree(last, sequence.hashes[count - 1], count, kind, shelf))
            else:
                self._mark(last, sequence.hashes[count - 1], count)
        before, places = self._root, list[Stretch]()
        for stretch in path:
            self._move(stretch, before)
            self._use(stretch, shelf)
            places += [stretch] * (stretch.end - before.end)
            before = stretch
        return places

    def _enter(self, sequence: Sequence, now: float) -> _Shelf:
        self._now = max(self._now, now)
        self._shares.seen(sequence.tenant, self._now)
        shelf = self._shelves.get(sequence.tenant)
        if shelf is None:
            shelf = self._shelves[sequence.tenant] = _Shelf(sequence.tenant)
        shelf.advance(self._now)
        return shelf

    # --- blocks -----------------------------------------------------------------------------------------------

    def add(self, block: int, place: Stretch) -> None:
        was_resident = place.resident
        self._stretch_of[block] = place
        place.blocks[block] = None
        self._count(place.shelf, 1)
        if len(place.blocks) == 1:
            self._settle(place, was_resident)

    def remove(self, block: int) -> None:
        stretch = self._stretch_of[block]
        del stretch.blocks[block]
        self._count(stretch.shelf, -1)
        if not stretch.blocks:
            self._settle(stretch, was_resident=True)

    def forget(self, block: int) -> None:
        if block in self:
            self.remove(block)
        self._stretch_of.pop(block, None)

    def pop(self, tenant: str) -> int:
        victim = self._victim
        if victim is None or not victim.blocks or victim.leaning or not self._may_lose(victim, tenant):
            self._victim = victim = self._choose(tenant)
        block = next(iter(victim.blocks))
        self.remove(block)
        del self._stretch_of[block]
        return block

    def clear(self) -> list[int]:
        blocks = [block for block, stretch in self._stretch_of.items() if block in stretch.blocks]
        for block in blocks:
            self.remove(block)
        self._stretch_of.clear()
        for stretch in self._marks.values():
            stretch.shelf.take(stretch)
            stretch.shelf.ghosts.pop(stretch, None)
        self._marks.clear()
        return blocks

    def _may_lose(self, stretch: Stretch, tenant: str) -> bool:
        return stretch.shelf.tenant == tenant or self._shares.over(stretch.shelf.tenant)

    def _choose(self, tenant: str) -> Stretch:
        holders = [name for name, shelf in self._shelves.items() if shelf.num_blocks]
        for names in (self._shares.victims(tenant, holders), holders):
            found = [self._shelves[name].least(self._now) for name in names]
            if any(found):
                return min((one for one in found if one is not None), key=lambda one: one[0])[1]
            # stretches of other tenants lean on all of theirs: one tenant went on from the prefix of another
        raise AssertionError("no block can be evicted")

    def _count(self, shelf: _Shelf, blocks: int) -> None:
        self._num_blocks += blocks
        shelf.num_blocks += blocks
        self._shares.uses(shelf.tenant, blocks)

    # --- the tree ---------------------------------------------------------------------------------------------

    def _path(self, links: Seq[bytes]) -> list[Stretch]:
        """The stretches that a prefix consists of, as far as they are known."""
        marks = self._marks
        return [marks[link] for link in links if link in marks]

    def _return(self, stretch: Stretch, resumed: bool) -> None:
        """A sequence begins with the stretch. `resumed`: the same one as before its preemption."""
        shelf = stretch.shelf
        shelf.advance(self._now)
        shelf.take(stretch)
        if stretch.in_use:
            stretch.kind = Kind.STEM
        elif not resumed:
            shelf.times.returned(stretch.kind, stretch.age)
            if stretch.kind is not Kind.STEM:
                stretch.kind = Kind.RETURNED
        stretch.in_use = True
        shelf.put(stretch, self._now)
        if stretch is self._victim:
            self._victim = None

    def _use(self, stretch: Stretch, shelf: _Shelf) -> None:
        """A sequence of the shelf's tenant leaves the stretch behind."""
        old, blocks = stretch.shelf, len(stretch.blocks)
        old.take(stretch)
        old.ghosts.pop(stretch, None)
        self._count(old, -blocks)
        self._count(shelf, blocks)
        stretch.in_use = False
        shelf.put(stretch, self._now)
        shelf.times.reached(stretch.kind, 0)
        if not stretch.resident:
            self._haunt(stretch)

    def _fork(self, last: Stretch, mark: bytes, shared: Seq[int], shelf: _Shelf) -> None:
        """A sequence shares blocks behind the stretch `last` and goes on differently: divide the stretch there."""
        divided, end = self._stretch_of.get(shared[-1]), len(shared)
        if divided is not None and not divided.in_use:
            divided.shelf.times.returned(divided.kind, divided.age)
        if divided is None or divided.parent is not last or divided.end <= end:
            stem = self._grow_tree(last, mark, end, Kind.STEM, shelf)
        elif last is not self._root and last.leaning == 1 and divided.resident:
            stem = last  # nothing else goes on from there
            self._mark(stem, mark, end)
        else:
            stem = self._grow_tree(last, mark, end, Kind.STEM, shelf)
            self._move(divided, stem)
        stem.in_use = True

    def _grow_tree(self, parent: Stretch, mark: bytes, end: int, kind: Kind, shelf: _Shelf) -> Stretch:
        stretch = self._marks[mark] = Stretch(mark, end, parent, kind, shelf)
        shelf.put(stretch, self._now)
        self._haunt(stretch)
        return stretch

    def _mark(self, stretch: Stretch, mark: bytes, end: int) -> None:
        """The stretch becomes longer."""
        del self._marks[stretch.mark]
        stretch.mark, stretch.end = mark, end
        self._marks[mark] = stretch

    def _move(self, stretch: Stretch, parent: Stretch) -> None:
        """The stretch is behind another one."""
        old = stretch.parent
        if old is parent or old is None:
            return
        stretch.parent = parent
        if stretch.resident:
            self._lean(parent, 1)
            self._lean(old, -1)

    def _lean(self, parent: Stretch, more: int) -> None:
        was_resident = parent.resident
        parent.leaning += more
        self._settle(parent, was_resident)

    def _settle(self, stretch: Stretch, was_resident: bool) -> None:
        """The stretch may have got its first block or lost its last, or one behind it has."""
        if stretch.parent is None:
            return
        shelf, resident = stretch.shelf, stretch.resident
        if stretch.blocks and not stretch.leaning:
            shelf.set_ready(stretch)
        else:
            shelf.set_unready(stretch)
        if resident != was_resident:
            self._lean(stretch.parent, 1 if resident else -1)
            if resident:
                shelf.ghosts.pop(stretch, None)
            else:
                self._haunt(stretch)

    def _haunt(self, stretch: Stretch) -> None:
        """The stretch has no blocks: remember it for a while, to learn when it is used again."""
        ghosts = stretch.shelf.ghosts
        ghosts[stretch] = None
        if len(ghosts) > GHOSTS:
            oldest, _ = ghosts.popitem(last=False)
            oldest.shelf.take(oldest)
            del self._marks[oldest.mark]
