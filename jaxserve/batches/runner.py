"""Runs batches in whatever capacity is left, and survives anything but the loss of the disk.

One task, in turns. A turn commits the lines that have ended; takes every batch as far as it goes without running lines,
where there is news or it has not looked for a while (a new one is checked, one that is cancelled or out of time ends);
starts lines while there is room; and waits. A line is run again only if its result was not committed.

The next line is of the tenant whose lines have the fewest sequences running, relative to its share, and of its batches
of the one that must end first. A tenant never has more than its share of the room.
"""

import asyncio
import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxserve.batches.errors import StoreFull
from jaxserve.batches.lines import Line, find_errors
from jaxserve.batches.progress import Progress, lines_left
from jaxserve.batches.records import Batch
from jaxserve.batches.store import Store

IDLE_S = 0.5
FULL_S = 2.0
"""How long to wait before a full disk is tried again."""
GROUP = 64
"""Finished lines that one commit writes at most; while a commit runs, the next group gathers."""


@dataclass(frozen=True, slots=True)
class LineResult:
    """`status` 200: `body` is the answer; else it is an error body."""

    status: int
    body: dict[str, Any]
    request_id: str


RunLine = Callable[[Batch, Line], Awaitable[LineResult]]
"""Retries what may go better later by itself; raises only when the server stops."""
_Task = asyncio.Task[LineResult]


class BatchRunner:
    """Runs the lines of the open batches, and does what its store's batches wait for.

    `room()`: how many sequences lines may have now, of those that run included; `share(tenant)`: the most that lines of
    one tenant may have. `now`: seconds since the epoch. `changed` is called with every batch that gets another status,
    `report` with what is wrong.
    """

    def __init__(
        self,
        store: Store,
        run_line: RunLine,
        room: Callable[[], int],
        *,
        max_lines: int,
        share: Callable[[str], float] = lambda tenant: math.inf,
        now: Callable[[], float] = time.time,
        changed: Callable[[Batch], None] = lambda batch: None,
        report: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._store, self._run_line, self._room, self._share = store, run_line, room, share
        self._max_lines, self._now, self._changed, self._report = max_lines, now, changed, report
        self._news = asyncio.Event()
        self._batches: list[Batch] = []
        """In progress when the store was last asked."""
        self._look_again = 0.0
        """When to ask it again, by the event loop's clock, if there is no news before."""
        self._progress: dict[str, Progress] = {}
        self._running: dict[_Task, tuple[Progress, Line]] = {}
        self._ended: list[tuple[str, int, bool, str]] = []
        """Results that are not committed yet."""

    @property
    def num_running(self) -> int:
        """Sequences of the lines that run at this moment."""
        return sum(line.sequences for _, line in self._running.values())

    @property
    def num_lines(self) -> int:
        return len(self._running)

    def wake(self) -> None:
        """Something changed: a new batch, a cancellation."""
        self._news.set()

    async def run(self) -> None:
        """For ever; cancel it to stop. Lines that run are dropped, and run again by the next runner."""
        try:
            while True:
                try:
                    await self._turn()
                except StoreFull as error:
                    self._look_again = 0.0
                    self._report(str(error))
                    await asyncio.sleep(FULL_S)
                except Exception as error:  # the engine stopped under it; what is not committed runs again
                    await self._drop(list(self._running))
                    self._progress.clear()
                    self._report(f"batches pause: {type(error).__name__}: {error}")
                    await asyncio.sleep(FULL_S)
        finally:
            await self._drop(list(self._running))

    async def _turn(self) -> None:
        self._gather()
        await self._write()
        if self._news.is_set() or asyncio.get_running_loop().time() >= self._look_again:
            await self._look()
        await self._start_lines()
        busy = {id(progress) for progress, _ in self._running.values()}
        through = [one for one in self._progress.values() if one.exhausted and id(one) not in busy]
        for progress in through:
            await self._end(progress.batch, "completed")
        if not through:
            await self._wait()

    async def _look(self) -> None:
        """Take every batch as far as it goes without running lines, and see which are left to run."""
        self._news.clear()
        batches = [await self._advance(batch) for batch in await asyncio.to_thread(self._store.unfinished)]
        self._batches = [batch for batch in batches if batch.status == "in_progress"]
        left_s = min((batch.expires_at - self._now() for batch in self._batches), default=math.inf)
        self._look_again = asyncio.get_running_loop().time() + min(IDLE_S, max(left_s, 0.0))

    # --- lines ------------------------------------------------------------------------------------------------

    async def _start_lines(self) -> None:
        while (turn := await self._next_line()) is not None:
            progress, line = turn
            room = self._room()
            if self.num_running + line.sequences > room and (self._running or room < 1):
                return  # a line that is larger than all the room there is runs alone
            progress.take()
            work = asyncio.ensure_future(self._run_line(progress.batch, line))
            self._running[work] = progress, line

    async def _next_line(self) -> tuple[Progress, Line] | None:
        """Of the tenant that has the least of its share, the batch that must end first; None: none may start now."""
        held = self._held()
        passed: set[str] = set()
        best: tuple[Progress, Line] | None = None
        least = math.inf
        for batch in self._batches:  # those that must end first come first
            if batch.tenant in passed:
                continue
            progress = await self._progress_of(batch)
            if (line := await progress.peek()) is None:
                continue
            passed.add(batch.tenant)
            share, mine = self._share(batch.tenant), held[batch.tenant]
            if mine and mine + line.sequences > share:
                continue  # a line that is larger than its tenant's share runs as that tenant's only one
            used = mine if share == math.inf else mine / share
            if used < least:
                best, least = (progress, line), used
        return best

    def _held(self) -> Counter[str]:
        """Sequences of the lines that run, by the tenant of their batch."""
        held: Counter[str] = Counter()
        for progress, line in self._running.values():
            held[progress.batch.tenant] += line.sequences
        return held

    async def _progress_of(self, batch: Batch) -> Progress:
        if batch.id not in self._progress:
            done = await asyncio.to_thread(self._store.done_lines, batch.id)
            self._progress[batch.id] = Progress(batch, self._store.path(batch.input_file_id), done)
        return self._progress[batch.id]

    def _gather(self) -> None:
        """Take the results of lines that have ended. Raises what ended them, if it was no result."""
        failure: BaseException | None = None
        for task in [task for task in self._running if task.done()]:
            progress, line = self._running.pop(task)
            if (error := task.exception()) is not None:
                failure = error
                continue
            result = task.result()
            response = {"status_code": result.status, "request_id": result.request_id, "body": result.body}
            content = _content(progress.batch, line, response, None)
            self._ended.append((progress.batch.id, line.number, result.status == 200, content))
        if failure is not None:
            raise failure

    async def _write(self) -> None:
        """Commit what has ended; a full disk is waited out, and meanwhile no new line starts."""
        while self._ended:
            group = self._ended[:GROUP]
            try:
                await asyncio.to_thread(self._store.add_results, group)
            except StoreFull as error:
                self._report(str(error))
                await asyncio.sleep(FULL_S)
                continue
            del self._ended[: len(group)]

    async def _drop(self, tasks: Sequence[_Task]) -> None:
        for task in tasks:
            self._running.pop(task)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- batches ----------------------------------------------------------------------------------------------

    async def _advance(self, batch: Batch) -> Batch:
        """Take a batch as far as it goes without running lines."""
        if batch.status == "validating":
            batch = await self._validate(batch)
        if batch.status == "cancelling":
            await self._leave(batch)
            return await self._end(batch, "cancelled")
        if batch.status == "finalizing":  # before a crash or a full disk
            return await self._end(batch, batch.ends_as or "completed")
        if batch.status == "in_progress" and self._now() >= batch.expires_at:
            await self._leave(batch)
            await self._expire(batch)
            return await self._end(batch, "expired")
        return batch

    async def _validate(self, batch: Batch) -> Batch:
        path = self._store.path(batch.input_file_id)
        try:
            total, errors = await asyncio.to_thread(find_errors, path, batch.endpoint, self._max_lines)
        except FileNotFoundError:
            total, errors = (
                0,
                [{"code": "no_such_file", "message": "the input file is gone", "param": None, "line": None}],
            )
        if errors:
            return await self._move(batch, "failed", errors=json.dumps(errors), total=total)
        return await self._move(batch, "in_progress", total=total)

    async def _leave(self, batch: Batch) -> None:
        """Run no more lines of a batch; those that have ended meanwhile count."""
        self._gather()
        await self._drop([task for task, (progress, _) in self._running.items() if progress.batch.id == batch.id])
        await self._write()

    async def _expire(self, batch: Batch) -> None:
        """Lines that did not run say so in the error file."""
        done = await asyncio.to_thread(self._store.done_lines, batch.id)
        error = {"code": "batch_expired", "message": "not executed before the completion window ended"}
        async for line in lines_left(self._store.path(batch.input_file_id), done):
            self._ended.append((batch.id, line.number, False, _content(batch, line, None, error)))
            if len(self._ended) >= GROUP:
                await self._write()
        await self._write()

    async def _end(self, batch: Batch, status: str) -> Batch:
        self._progress.pop(batch.id, None)
        self._batches = [one for one in self._batches if one.id != batch.id]
        if status != "cancelled" and batch.status != "finalizing":
            batch = await self._move(batch, "finalizing", ends_as=status)
        ended = await asyncio.to_thread(self._store.finalize, batch.id, status, self._now())
        self._changed(ended)
        return ended

    async def _move(self, batch: Batch, status: str, **columns: Any) -> Batch:
        moved = await asyncio.to_thread(lambda: self._store.move(batch.id, status, self._now(), **columns))
        if moved.status == status:  # and not one that has been cancelled meanwhile
            self._changed(moved)
        return moved

    # --- waiting ----------------------------------------------------------------------------------------------

    async def _wait(self) -> None:
        """Until a line ends, there is news, or it is time to look again: at the store, or for room."""
        left_s = max(self._look_again - asyncio.get_running_loop().time(), 0.0)
        if self._running:
            await asyncio.wait(self._running, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            return
        # not `wait_for`: before Python 3.12 it loses a cancellation that comes in the same turn as the news
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(left_s, IDLE_S / 5) if self._batches else left_s):
                await self._news.wait()


def _content(batch: Batch, line: Line, response: dict[str, Any] | None, error: dict[str, Any] | None) -> str:
    """One line of an output or error file. Its id follows from the batch and the line."""
    line_id = f"batch_req_{batch.id.removeprefix('batch_')}_{line.number}"
    entry = {"id": line_id, "custom_id": line.custom_id, "response": response, "error": error}
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":"))
