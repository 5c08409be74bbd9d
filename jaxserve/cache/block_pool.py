"""Which blocks are free, and how many sequences hold each block that is not.

    free, unknown     taken first: nothing is lost by overwriting them
    free, cached      no sequence holds them, but their content is known to the prefix cache: reused on a hit, evicted
                      when no unknown block is left, in the order that the `Retention` says
    held              by one sequence or, a shared prefix, by several: `references` counts them

Block 0 is the scratch block: padding writes there, and no sequence ever holds it.

Blocks are first taken in the order of their numbers, and those that were never taken are not stored: a simulated pool
may have more of them than this machine has memory for a list.

    0   1   2   3  |  4   5   6  ...
    references     |  never taken: as unknown as what `unknown` holds
"""

from collections.abc import Callable
from typing import Any

from jaxserve.cache.retention import Retention

SCRATCH_BLOCK = 0


class BlockPool:
    """`num_blocks` counts the scratch block. `on_evict(block)` is called when a cached block loses its content."""

    def __init__(self, num_blocks: int, retention: Retention, on_evict: Callable[[int], None]) -> None:
        assert num_blocks >= 2, "a pool needs the scratch block and one more"
        self.num_blocks = num_blocks
        self._on_evict = on_evict
        self._references = [1]
        """Of the blocks that were ever taken, and the scratch block."""
        self._unknown: list[int] = []
        self._cached = retention

    @property
    def capacity(self) -> int:
        """Blocks that sequences can hold."""
        return self.num_blocks - 1

    @property
    def num_free(self) -> int:
        return len(self._unknown) + len(self._cached) + self.num_blocks - len(self._references)

    @property
    def num_cached(self) -> int:
        """Free blocks whose content is still known."""
        return len(self._cached)

    def references(self, block: int) -> int:
        return self._references[block] if block < len(self._references) else 0

    def is_free(self, block: int) -> bool:
        return self.references(block) == 0

    def is_cached(self, block: int) -> bool:
        """Free, and its content is still known."""
        return block in self._cached

    def take(self, tenant: str) -> int:
        """A block for new content of a tenant. The caller has checked `num_free`."""
        if self._unknown:
            block = self._unknown.pop()
        elif len(self._references) < self.num_blocks:
            self._references.append(1)
            return len(self._references) - 1
        else:
            block = self._cached.pop(tenant)
            self._on_evict(block)
        self._references[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more holder of a block whose content is known."""
        if self._references[block] == 0:
            self._cached.remove(block)
        self._references[block] += 1

    def release(self, block: int, place: Any = None) -> None:
        """One holder less. `place`: where the retention puts the block; None: its content is not known."""
        count = self._references[block] - 1
        assert count >= 0 and block != SCRATCH_BLOCK, f"block {block} was released too often"
        self._references[block] = count
        if count == 0:
            if place is not None:
                self._cached.add(block, place)
            else:
                self._unknown.append(block)

    def forget(self, block: int) -> None:
        """The prefix cache cannot name the block's content any more; its holders keep it."""
        was_cached = block in self._cached
        self._cached.forget(block)
        if was_cached:
            self._unknown.append(block)

    def forget_cached(self) -> None:
        """Every cached free block becomes an unknown one (the prefix cache was dropped)."""
        self._unknown.extend(self._cached.clear())
