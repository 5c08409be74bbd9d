"""Host memory and a disk made of dictionaries: as slow and as unreliable as a test wants."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from jaxserve.core.plan import Move, Moved, MoveKind, Tier

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
            move.key: [cache.get(move.source_block * size + i) for i in range(size)]
            for move in moves
            if move.kind is MoveKind.SAVE
        }
        loads: list[tuple[int, Content]] = []
        for move in moves:
            match move.kind:
                case MoveKind.SAVE:
                    self._save(move, saved[move.key])
                case MoveKind.LOAD:
                    loads.append((move.target_block, self._take(move)))
                case MoveKind.FETCH:
                    ok = move.source_block in self.disk and not self.fails(move)
                    if ok:
                        self.staged[move.source_block] = self.disk[move.source_block]
                    self._end(move, ok)
                case MoveKind.UNSTAGE:
                    self.staged.pop(move.source_block, None)
                case MoveKind.DROP:
                    self.staged.pop(move.source_block, None)
                    self.disk.pop(move.source_block, None)
        return loads

    def _save(self, move: Move, content: Content) -> None:
        assert move.source_block > 0, "the scratch block belongs to no sequence"
        if move.target is Tier.HOST:
            self.host[move.target_block] = content
            return
        ok = not self.fails(move)
        if ok:
            self.disk[move.target_block] = content
        self._end(move, ok)

    def _take(self, move: Move) -> Content:
        if move.source is Tier.HOST:
            return self.host[move.source_block]
        del self.disk[move.source_block]
        return self.staged.pop(move.source_block)

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
