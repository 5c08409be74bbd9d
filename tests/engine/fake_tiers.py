"""Host memory and a disk made of dictionaries: as slow and as unreliable as a test wants."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from jaxserve.core.plan import Move, Moved, Tier

Content = list[tuple[int, ...] | None]  # of each slot of a block: the tokens up to and with the one stored there


@dataclass
class FakeTiers:
    """`delay`: steps until a move to or from the disk has ended. `fails`: whether such a move fails."""

    block_size: int
    delay: int = 0
    fails: Callable[[Move], bool] = lambda move: False
    host: dict[int, Content] = field(default_factory=dict)
    disk: dict[int, Content] = field(default_factory=dict)
    staged: dict[int, Content] = field(default_factory=dict)
    _ending: deque[tuple[int, Moved]] = field(default_factory=deque)
    _now: int = 0

    def before(self, cache: dict[int, tuple[int, ...]], moves: tuple[Move, ...]) -> list[tuple[int, Content]]:
        """Everything but the stores of loaded blocks, which come back."""
        size = self.block_size
        saved = {
            m.key: [cache.get(m.source_block * size + i) for i in range(size)] for m in moves if m.source == "device"
        }
        loads: list[tuple[int, Content]] = []
        for move in moves:
            key = move.source, move.target
            if move.source is Tier.DEVICE:
                assert move.source_block > 0, "the scratch block is nobody's"
            if key == (Tier.DEVICE, Tier.HOST):
                self.host[move.target_block] = saved[move.key]
            elif key == (Tier.DEVICE, Tier.DISK):
                ok = not self.fails(move)
                if ok:
                    self.disk[move.target_block] = saved[move.key]
                self._end(move, ok)
            elif key == (Tier.HOST, Tier.DEVICE):
                loads.append((move.target_block, self.host[move.source_block]))
            elif key == (Tier.DISK, Tier.STAGED):
                ok = move.source_block in self.disk and not self.fails(move)
                if ok:
                    self.staged[move.source_block] = self.disk[move.source_block]
                self._end(move, ok)
            elif key == (Tier.STAGED, Tier.DEVICE):
                loads.append((move.target_block, self.staged.pop(move.source_block)))
                del self.disk[move.source_block]
            elif key == (Tier.STAGED, Tier.DISK):
                self.staged.pop(move.source_block, None)
            else:
                assert move.target is Tier.NONE
                self.staged.pop(move.source_block, None)
                self.disk.pop(move.source_block, None)
        return loads

    def after(self, cache: dict[int, tuple[int, ...]], loads: list[tuple[int, Content]]) -> None:
        for block, content in loads:
            for i, tokens in enumerate(content):
                if tokens is None:
                    cache.pop(block * self.block_size + i, None)
                else:
                    cache[block * self.block_size + i] = tokens

    def settled(self) -> tuple[Moved, ...]:
        """A step later."""
        self._now += 1
        ended: list[Moved] = []
        while self._ending and self._ending[0][0] < self._now:
            ended.append(self._ending.popleft()[1])
        return tuple(ended)

    def reset(self) -> None:
        for content in (self.host, self.disk, self.staged, self._ending):
            content.clear()

    def _end(self, move: Move, ok: bool) -> None:
        self._ending.append((self._now + self.delay, Moved(move, ok)))
