"""Which blocks are away from the device, and where: in host memory, or on the disk.

Two kinds of content leave the device. A preempted sequence is *parked*: all its computed K/V, until it runs again. A
prefix block that is evicted is *kept* in host memory, until a request needs it again or its room is needed.

    device --save--> host --load--> device            in the order of the plans: done when it is needed
    device --save--> disk --fetch--> staged --load--> device        may take long, and may fail: reported

Like the block manager this is a ledger: it says what to move (`take_moves`) and takes in the results (`settle`). Host
slots never fail. A disk slot whose save or fetch failed is *lost*: the sequence keeps the blocks before it and computes
the rest again. Blocks in transit to or from the disk use separate host memory: at most `staging_blocks`, or one
sequence if larger.
"""

from collections import OrderedDict
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import count, takewhile

from jaxserve.core.plan import Move, Moved, MoveKind, Tier
from jaxserve.core.sequence import Sequence

MAX_BACKOFF = 256
"""After failed saves the disk is left alone for 1, 2, 4 .. parkings, up to this many."""


@dataclass(slots=True, eq=False)
class Parked:
    """A sequence's K/V away from the device: its block i is in `slots[i]` of `tier`."""

    tier: Tier
    slots: list[int]
    tokens: int
    """Computed tokens, all blocks together; the last one may be partly filled."""
    intact: int
    """Leading blocks that are not lost."""
    fetching: set[int] = field(default_factory=set[int])
    """Keys of the fetches under way."""
    staged: bool = False
    """Fetched, or being fetched."""


@dataclass(slots=True)
class TierCounts:
    """Blocks since the start."""

    saved_to_host: int = 0
    saved_to_disk: int = 0
    loaded_from_host: int = 0
    loaded_from_disk: int = 0
    failed_saves: int = 0
    failed_fetches: int = 0
    prefixes_kept: int = 0
    prefixes_loaded: int = 0


class TierLedger:
    """`host_blocks`, `disk_blocks`: sizes of the tiers; 0: there is none."""

    def __init__(self, host_blocks: int = 0, disk_blocks: int = 0, staging_blocks: int = 0) -> None:
        self.capacity = {Tier.HOST: host_blocks, Tier.DISK: disk_blocks}
        self.counts = TierCounts()
        self._staging_blocks = staging_blocks
        self._keys = count()
        self._outbox: list[Move] = []
        self.reset()

    def reset(self) -> None:
        """All content away from the device is lost: the executor was reset. Moves in progress are not waited for."""
        self._free = {tier: list(range(size - 1, -1, -1)) for tier, size in self.capacity.items()}
        self._parked: dict[Sequence, Parked] = {}
        self._prefixes: OrderedDict[bytes, int] = OrderedDict()
        self._under_way: dict[int, tuple[Parked, int]] = {}
        self._writing = self._staged = 0
        self._failures = self._backoff = 0
        self._loading: set[Sequence] = set()
        self._outbox.clear()

    # --- what can be asked ------------------------------------------------------------------------------------

    def used(self, tier: Tier) -> int:
        """Slots that hold something; of the host's, kept prefixes included."""
        return self.capacity[tier] - len(self._free[tier])

    def num_parked(self, tier: Tier) -> int:
        """Sequences whose K/V a tier holds."""
        return sum(parked.tier is tier for parked in self._parked.values())

    @property
    def num_prefixes(self) -> int:
        return len(self._prefixes)

    def room(self, tier: Tier) -> int:
        """Blocks that a sequence could park in a tier now. Kept prefixes are dropped for it."""
        free = len(self._free[tier])
        if tier is Tier.HOST:
            return free + len(self._prefixes)
        if self._backoff:
            return 0
        transit = self._writing + self._staged
        return free if not transit else min(free, max(self._staging_blocks - transit, 0))

    @property
    def busy(self) -> bool:
        """Moves wait to be planned, or are under way to or from the disk."""
        return bool(self._outbox or self._under_way)

    @property
    def waits_for_disk(self) -> bool:
        return bool(self._under_way)

    def parked(self, sequence: Sequence) -> Parked | None:
        return self._parked.get(sequence)

    def loading(self, sequence: Sequence) -> bool:
        """Whether its blocks are loaded after the step that is being planned: it has no row in that step."""
        return sequence in self._loading

    # --- sequences --------------------------------------------------------------------------------------------

    def park(self, sequence: Sequence, blocks: Seq[int], tokens: int, tier: Tier) -> None:
        """Save a sequence's first `tokens` tokens, which are in `blocks`. There must be room."""
        assert len(blocks) <= self.room(tier) and sequence not in self._parked
        parked = Parked(tier, [], tokens, len(blocks))
        self._parked[sequence] = parked
        for i, block in enumerate(blocks):
            slot = self._take(tier)
            parked.slots.append(slot)
            key = self._emit(Tier.DEVICE, block, tier, slot)
            if tier is Tier.DISK:
                self._under_way[key] = parked, i
                self._writing += 1
        if tier is Tier.DISK:
            self.counts.saved_to_disk += len(blocks)
        else:
            self.counts.saved_to_host += len(blocks)

    def disk_was_not_tried(self) -> None:
        """A sequence was preempted and not parked on the disk. A failed disk is tried again after some of these."""
        self._backoff = max(self._backoff - 1, 0)

    def ready(self, sequence: Sequence) -> bool:
        """Whether a sequence can be loaded now. If it is on the disk, this starts the fetch."""
        parked = self._parked.get(sequence)
        if parked is None or parked.tier is Tier.HOST:
            return True
        if not parked.staged and not self._start_fetch(parked):
            return False
        return not parked.fetching

    def unpark(self, sequence: Sequence, first: int, blocks: Seq[int]) -> int:
        """Load a ready sequence's blocks from the `first` on into the `blocks` of those numbers.

        Returns the leading blocks that the device then holds. The slots are free; the sequence runs a step later.
        """
        parked = self._parked.pop(sequence)
        source = Tier.HOST if parked.tier is Tier.HOST else Tier.STAGED
        for i, slot in enumerate(parked.slots):
            if first <= i < parked.intact:
                self._emit(source, slot, Tier.DEVICE, blocks[i])
                self._loading.add(sequence)
            elif parked.tier is Tier.DISK:
                self._emit(Tier.DISK, slot, Tier.NONE, slot)
        loaded = max(parked.intact - first, 0)
        if parked.tier is Tier.HOST:
            self.counts.loaded_from_host += loaded
        else:
            self.counts.loaded_from_disk += loaded
            self._staged -= len(parked.slots)
        self._free[parked.tier].extend(parked.slots)
        return max(parked.intact, first)

    def forget(self, sequence: Sequence) -> None:
        """A parked sequence has ended, or will be computed again."""
        parked = self._parked.pop(sequence, None)
        if parked is None:
            return
        if parked.tier is Tier.DISK:
            for slot in parked.slots:
                self._emit(Tier.DISK, slot, Tier.NONE, slot)
            if parked.staged:
                self._staged -= len(parked.slots)
        self._free[parked.tier].extend(parked.slots)

    # --- prefixes ---------------------------------------------------------------------------------------------

    def keep_prefix(self, link: bytes, block: int) -> None:
        """The device is about to overwrite a block of a known prefix: keep it in host memory.

        Without a free slot it replaces the least recently used prefix.
        """
        if link in self._prefixes:
            self._prefixes.move_to_end(link)
        elif self._free[Tier.HOST] or self._prefixes:
            self._prefixes[link] = slot = self._take(Tier.HOST)
            self._emit(Tier.DEVICE, block, Tier.HOST, slot)
            self.counts.prefixes_kept += 1

    def find_prefixes(self, links: Seq[bytes]) -> list[bytes]:
        """The leading links whose blocks are kept. To be looked for counts as use: these are dropped last."""
        found = list(takewhile(self._prefixes.__contains__, links))
        for link in found:
            self._prefixes.move_to_end(link)
        return found

    def claim_prefixes(self, links: Seq[bytes]) -> dict[bytes, int]:
        """Slots of kept links, which are not reused until they are loaded. That must follow in the same plan."""
        return {link: self._prefixes.pop(link) for link in links}

    def load_prefixes(self, sequence: Sequence, slots: dict[bytes, int], blocks: Seq[int]) -> None:
        """Load claimed prefix blocks into the first of `blocks`; they stay kept as well."""
        for (link, slot), block in zip(slots.items(), blocks, strict=False):
            self._emit(Tier.HOST, slot, Tier.DEVICE, block)
            self._loading.add(sequence)
            if link in self._prefixes:  # the device has evicted the same prefix since it was claimed
                self._free[Tier.HOST].append(slot)
            else:
                self._prefixes[link] = slot
        self.counts.prefixes_loaded += len(slots)

    def drop_prefix(self, link: bytes) -> None:
        slot = self._prefixes.pop(link, None)
        if slot is not None:
            self._free[Tier.HOST].append(slot)

    def drop_prefixes(self) -> None:
        self._free[Tier.HOST].extend(self._prefixes.values())
        self._prefixes.clear()

    # --- moves ------------------------------------------------------------------------------------------------

    def take_moves(self) -> tuple[Move, ...]:
        """The moves of the step being planned. What it loads is on the device from the next step on."""
        moves = tuple(self._outbox)
        self._outbox.clear()
        self._loading.clear()
        return moves

    def settle(self, moved: Seq[Moved]) -> None:
        """Take in which saves to the disk and fetches from it have ended."""
        for move, ok in moved:
            if move.key not in self._under_way:
                continue  # from before a reset
            parked, index = self._under_way.pop(move.key)
            parked.fetching.discard(move.key)
            if not ok:
                parked.intact = min(parked.intact, index)
            match move.kind:
                case MoveKind.SAVE:
                    self._writing -= 1
                    self._note_save(ok)
                case MoveKind.FETCH:
                    self.counts.failed_fetches += not ok
                case _:
                    raise AssertionError(f"no {move.kind} is reported")

    def _note_save(self, ok: bool) -> None:
        if ok:
            self._failures = 0
            return
        self.counts.failed_saves += 1
        if not self._backoff:
            self._failures += 1
            self._backoff = min(2 ** (self._failures - 1), MAX_BACKOFF)

    def _start_fetch(self, parked: Parked) -> bool:
        """Begin to read a sequence's blocks. False: blocks in transit leave no room yet.

        Blocks that were fetched for another sequence and not loaded since are dropped from the staging memory, so that
        two sequences cannot wait for each other's room for ever.
        """
        wanted = len(parked.slots)
        if self._staged and self._staged + wanted > self._staging_blocks:
            for other in self._parked.values():
                if other.staged and not other.fetching:
                    self._unstage(other)
        if self._staged and self._staged + wanted > self._staging_blocks:
            return False
        parked.staged = True
        self._staged += wanted
        for i, slot in enumerate(parked.slots[: parked.intact]):
            key = self._emit(Tier.DISK, slot, Tier.STAGED, slot)
            self._under_way[key] = parked, i
            parked.fetching.add(key)
        return True

    def _unstage(self, parked: Parked) -> None:
        for slot in parked.slots:
            self._emit(Tier.STAGED, slot, Tier.DISK, slot)
        parked.staged = False
        self._staged -= len(parked.slots)

    def _take(self, tier: Tier) -> int:
        if tier is Tier.HOST and not self._free[tier]:
            return self._prefixes.popitem(last=False)[1]
        return self._free[tier].pop()

    def _emit(self, source: Tier, source_block: int, target: Tier, target_block: int) -> int:
        key = next(self._keys)
        self._outbox.append(Move(source, source_block, target, target_block, key))
        return key
