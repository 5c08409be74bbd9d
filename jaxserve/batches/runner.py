"""Runs batches, oldest first, in whatever capacity is left, and survives anything but the loss of the disk.

One task. It moves a batch from status to status; while one is in progress it keeps as many lines running as `room` says
are free, and writes finished lines to the store in groups. A line is run again only if its result was not committed.
"""

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from jaxserve.batches.errors import StoreFull
from jaxserve.batches.lines import Line, find_errors, read_lines
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


RunLine = Callable[[str, dict[str, Any]], Awaitable[LineResult]]
"""(endpoint, body) -> result. Retries what may go better later by itself; raises only when the server stops."""


@dataclass(slots=True)
class _Progress:
    """One batch while it runs."""

    batch: Batch
    lines: AsyncIterator[Line]
    running: dict["asyncio.Task[LineResult]", Line] = field(default_factory=dict)
    written: list[tuple[str, int, bool, str]] = field(default_factory=list)
    exhausted: bool = False


class BatchRunner:
    """`room()`: how many lines may run now, those that run included. `now`: seconds since the epoch."""

    def __init__(
        self,
        store: Store,
        run_line: RunLine,
        room: Callable[[], int],
        *,
        max_lines: int,
        now: Callable[[], float] = time.time,
        report: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._store, self._run_line, self._room = store, run_line, room
        self._max_lines, self._now, self._report = max_lines, now, report
        self._news = asyncio.Event()
        self.num_running = 0
        """Lines that run at this moment."""

    def wake(self) -> None:
        """Something changed: a new batch, a cancellation."""
        self._news.set()

    async def run(self) -> None:
        """For ever; cancel it to stop. Lines that run are dropped, and run again by the next runner."""
        while True:
            try:
                batches = await asyncio.to_thread(self._store.unfinished)
                for batch in batches:
                    await self._advance(batch)
            except StoreFull as error:
                self._report(str(error))
                await asyncio.sleep(FULL_S)
                continue
            except Exception as error:  # the engine stopped under it; what is not committed runs again
                self._report(f"batches pause: {type(error).__name__}: {error}")
                await asyncio.sleep(FULL_S)
                continue
            if not batches:
                await self._wait(IDLE_S)

    async def _advance(self, batch: Batch) -> None:
        """Take a batch as far as it goes now."""
        match batch.status:
            case "validating":
                await self._validate(batch)
            case "in_progress":
                await self._progress(batch)
            case "cancelling":
                await self._end(batch.id, "cancelled")
            case _:  # finalizing, before a crash or a full disk
                await self._end(batch.id, batch.ends_as or "completed")

    async def _validate(self, batch: Batch) -> None:
        path = self._store.path(batch.input_file_id)
        try:
            total, errors = await asyncio.to_thread(find_errors, path, batch.endpoint, self._max_lines)
        except FileNotFoundError:
            total, errors = (
                0,
                [{"code": "no_such_file", "message": "the input file is gone", "param": None, "line": None}],
            )
        if errors:
            await self._move(batch.id, "failed", errors=json.dumps(errors), total=total)
        elif (await self._move(batch.id, "in_progress", total=total)).status == "in_progress":
            await self._progress(await asyncio.to_thread(self._store.batch, batch.id))

    # --- a batch in progress ----------------------------------------------------------------------------------

    async def _progress(self, batch: Batch) -> None:
        done = await asyncio.to_thread(self._store.done_lines, batch.id)
        progress = _Progress(batch, self._lines_left(batch, done))
        try:
            ends_as = await self._run_all(progress)
        finally:
            for task in progress.running:
                task.cancel()
            await asyncio.gather(*progress.running, return_exceptions=True)
            self.num_running = 0
        await self._end(batch.id, ends_as)

    async def _run_all(self, progress: _Progress) -> str:
        """Run lines until all are done, or the batch is cancelled or expires. What it ends as."""
        while True:
            batch = await asyncio.to_thread(self._store.batch, progress.batch.id)
            if batch.status == "cancelling":
                await self._write(progress)
                return "cancelled"
            if self._now() >= batch.expires_at:
                await self._write(progress)
                await self._expire(progress)
                return "expired"
            await self._start_lines(progress)
            if progress.running:
                timeout = min(IDLE_S, max(0.0, batch.expires_at - self._now()))
                finished, _ = await asyncio.wait(progress.running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                for task in finished:
                    self._note(progress, progress.running.pop(task), task.result())
                self.num_running = len(progress.running)
                await self._write(progress)
            elif progress.exhausted:
                await self._write(progress)
                return "completed"
            else:
                await self._wait(IDLE_S / 5)  # no room: somebody else is served

    async def _start_lines(self, progress: _Progress) -> None:
        while not progress.exhausted and len(progress.running) < self._room():
            line = await anext(progress.lines, None)
            if line is None:
                progress.exhausted = True
                return
            work = self._run_line(progress.batch.endpoint, line.body)
            progress.running[asyncio.ensure_future(work)] = line
            self.num_running = len(progress.running)

    def _note(self, progress: _Progress, line: Line, result: LineResult) -> None:
        response = {"status_code": result.status, "request_id": result.request_id, "body": result.body}
        content = _content(progress.batch, line, response, None)
        progress.written.append((progress.batch.id, line.number, result.status == 200, content))

    async def _write(self, progress: _Progress) -> None:
        """Commit what is finished; a full disk is waited out, and meanwhile no new line starts."""
        while progress.written:
            group = progress.written[:GROUP]
            try:
                await asyncio.to_thread(self._store.add_results, group)
            except StoreFull as error:
                self._report(str(error))
                await asyncio.sleep(FULL_S)
                continue
            del progress.written[: len(group)]

    async def _expire(self, progress: _Progress) -> None:
        """Lines that did not run say so in the error file."""
        done = await asyncio.to_thread(self._store.done_lines, progress.batch.id)
        error = {"code": "batch_expired", "message": "not executed before the completion window ended"}
        async for line in self._lines_left(progress.batch, done):
            content = _content(progress.batch, line, None, error)
            progress.written.append((progress.batch.id, line.number, False, content))
            if len(progress.written) >= GROUP:
                await self._write(progress)
        await self._write(progress)

    async def _lines_left(self, batch: Batch, done: set[int]) -> AsyncIterator[Line]:
        """Lines without a result, read a few at a time on a thread."""
        lines = read_lines(self._store.path(batch.input_file_id))
        while True:
            some = await asyncio.to_thread(lambda: list(itertools.islice(lines, GROUP)))
            for line in some:
                if line.number not in done:
                    yield line
            if len(some) < GROUP:
                return

    # --- ends -------------------------------------------------------------------------------------------------

    async def _end(self, batch_id: str, status: str) -> None:
        if status != "cancelled":
            await self._move(batch_id, "finalizing", ends_as=status)
        await asyncio.to_thread(self._store.finalize, batch_id, status, self._now())

    async def _move(self, batch_id: str, status: str, **columns: Any) -> Batch:
        return await asyncio.to_thread(lambda: self._store.move(batch_id, status, self._now(), **columns))

    async def _wait(self, seconds: float) -> None:
        # not `wait_for`: before Python 3.12 it loses a cancellation that comes in the same turn as the news
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
        self._news.clear()


def _content(batch: Batch, line: Line, response: dict[str, Any] | None, error: dict[str, Any] | None) -> str:
    """One line of an output or error file. Its id follows from the batch and the line."""
    line_id = f"batch_req_{batch.id.removeprefix('batch_')}_{line.number}"
    entry = {"id": line_id, "custom_id": line.custom_id, "response": response, "error": error}
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":"))
