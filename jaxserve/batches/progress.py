"""One batch while its lines are run: which of them are left."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Set
from pathlib import Path

from jaxserve.batches.lines import Line, read_lines
from jaxserve.batches.records import Batch

READ = 64
"""Lines that are read at a time."""


class Progress:
    """`path`: the batch's input; `done`: numbers of the lines that have a result."""

    def __init__(self, batch: Batch, path: Path, done: Set[int]) -> None:
        self.batch = batch
        self._lines = lines_left(path, done)
        self._next: Line | None = None
        self.exhausted = False
        """Every line has been taken."""

    async def peek(self) -> Line | None:
        """The line that is next, None after the last."""
        if self._next is None and not self.exhausted:
            self._next = await anext(self._lines, None)
            self.exhausted = self._next is None
        return self._next

    def take(self) -> None:
        """Whoever has peeked has begun it."""
        self._next = None


async def lines_left(path: Path, done: Set[int]) -> AsyncIterator[Line]:
    """Lines without a result, read a few at a time on a thread."""
    lines = read_lines(path)
    while True:
        some = await asyncio.to_thread(lambda: list(itertools.islice(lines, READ)))
        for line in some:
            if line.number not in done:
                yield line
        if len(some) < READ:
            return
