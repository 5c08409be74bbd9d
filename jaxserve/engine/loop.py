"""The engine of this process, for asynchronous callers: an `EngineClient`.

The engine runs on a thread of its own (`engine.thread`). Outputs cross to the event loop in one call a step, whatever
their number, and each reader finds all of its own there at once.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxserve.core.clock import Clock, MonotonicClock
from jaxserve.core.decisions import Decision
from jaxserve.core.errors import DuplicateRequest, EngineStopped, JaxserveError
from jaxserve.core.sequence import Request
from jaxserve.engine.client import EngineClient
from jaxserve.engine.engine import Engine
from jaxserve.engine.facts import Compilations, Device, EngineFacts, RequestState
from jaxserve.engine.outputs import SequenceOutput
from jaxserve.engine.profile import Profiler, ProfileRunning, StepCount
from jaxserve.engine.stream import OutputStream
from jaxserve.engine.thread import Delivery, EngineThread
from jaxserve.metrics.counts import Counts
from jaxserve.metrics.engine_metrics import EngineMetrics
from jaxserve.metrics.snapshot import Snapshot, take
from jaxserve.metrics.view import Seen, view

PROFILE_PATIENCE_S = 10.0
"""How long a profile waits for the step under way before it counts steps."""


class EngineLoop(EngineClient):
    """Start it inside a running event loop; `open` and `generate` may then be called from that loop by any task.

    See `engine.client.EngineClient` for what is not documented here. Without a `device`, what is known of it is 0;
    without a `profiler` there are no profiles.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Clock | None = None,
        *,
        device: Device | None = None,
        profiler: Profiler | None = None,
    ) -> None:
        self._engine, self._device, self._profiler = engine, device, profiler
        self._facts = EngineFacts.of(engine, device)
        self._streams: dict[str, OutputStream] = {}
        self._metrics = EngineMetrics()
        self._thread = EngineThread(engine, self._hand_out, self.fail_open, clock or MonotonicClock())

    @property
    def engine(self) -> Engine:
        """For its thread, or while that does not run."""
        return self._engine

    def start(self) -> None:
        self._engine.expects_more = True
        self._engine.observers.append(self._metrics)
        self._thread.start()

    async def stop(self) -> None:
        await self._thread.stop()
        if self._metrics in self._engine.observers:  # it may be stopped twice
            self._engine.observers.remove(self._metrics)

    # --- requests ---------------------------------------------------------------------------------------------

    def open(
        self, requests: Sequence[Request], *, timeout_s: float | None = None, max_backlog: int | None = None
    ) -> OutputStream:
        if not self.alive:
            raise EngineStopped(f"the engine is not running{f': {self.failure}' if self.failure else ''}")
        for request in requests:
            if request.id in self._streams:
                raise DuplicateRequest(request.id)
        stream = OutputStream(requests, self._close, timeout_s=timeout_s, max_backlog=max_backlog)
        for request in requests:
            self._streams[request.id] = stream
            self._thread.send(partial(self._add, request))
        return stream

    async def generate(self, request: Request) -> AsyncGenerator[SequenceOutput, None]:
        """A request's outputs as they come, of all its sequences. Leaving early aborts it within one step.

        Raises:
          InvalidRequest, QueueFull: nothing was queued.
          EngineStopped: the engine ended before the request did.
        """
        stream = self.open([request])
        try:
            while outputs := await stream.next():
                for output in outputs:
                    yield output
        finally:
            stream.close()

    def fail_open(self, error: Exception) -> None:
        for stream in list(self._streams.values()):
            stream.fail(error)

    def _add(self, request: Request) -> None:
        """On the engine's thread."""
        try:
            self._engine.add(request)
        except Exception as error:
            self._thread.post([(request.id, error)])

    def _abort(self, request_id: str) -> None:
        """On the engine's thread."""
        self._engine.abort(request_id)

    def _hand_out(self, items: list[Delivery]) -> None:
        for request_id, item in items:
            stream = self._streams.get(request_id)
            if stream is None:
                continue
            if isinstance(item, Exception):
                stream.fail(item)
                continue
            stream.push(item)
            if not stream.has(request_id):
                self._streams.pop(request_id, None)

    def _close(self, request_ids: Sequence[str]) -> None:
        """A stream is done with these before they ended."""
        for request_id in request_ids:
            if self._streams.pop(request_id, None) is not None:
                self._thread.send(partial(self._abort, request_id))

    # --- what is known at once --------------------------------------------------------------------------------

    @property
    def facts(self) -> EngineFacts:
        return self._facts

    @property
    def alive(self) -> bool:
        return self._thread.alive

    @property
    def failure(self) -> Exception | None:
        return self._thread.failure

    @property
    def step_age_s(self) -> float:
        return self._thread.step_age_s

    @property
    def num_steps(self) -> int:
        return self._thread.num_steps

    @property
    def num_open(self) -> int:
        return sum(stream.num_open(request_id) for request_id, stream in self._streams.items())

    @property
    def compilations(self) -> Compilations:
        device = self._device
        if device is None:
            return Compilations()
        return Compilations(device.compilations_after_warmup, tuple(device.compilations))

    @property
    def counts(self) -> Counts:
        return self._metrics.counts

    def stack(self) -> str:
        return self._thread.stack()

    # --- questions --------------------------------------------------------------------------------------------

    async def snapshot(self, timeout_s: float) -> Snapshot:
        return await self._thread.ask(lambda engine: take(engine.scheduler, engine.now), timeout_s)

    async def view(self, seen: Seen, timeout_s: float) -> tuple[dict[str, Any], Seen]:
        def look(engine: Engine) -> tuple[dict[str, Any], Seen]:
            shot = take(engine.scheduler, engine.now, with_map=True)
            scheduler = engine.scheduler
            return view(shot, self._metrics, scheduler.journal, self._facts.tenants, scheduler.config, seen)

        return await self._thread.ask(look, timeout_s)

    async def decisions(self, timeout_s: float) -> list[Decision]:
        """Copies: the journal adds to its last decisions."""

        def look(engine: Engine) -> list[Decision]:
            return [replace(one, changes=list(one.changes)) for one in engine.scheduler.journal.decisions()]

        return await self._thread.ask(look, timeout_s)

    async def request_states(self, request_ids: Sequence[str], timeout_s: float) -> Mapping[str, RequestState]:
        def look(engine: Engine) -> dict[str, RequestState]:
            return {
                sequence: RequestState(
                    account.ended or str(account.part),
                    account.seconds,
                    account.first_token,
                    tuple(account.preemptions),
                )
                for request_id in request_ids
                for sequence, account in engine.scheduler.journal.accounts_of(request_id, engine.now).items()
            }

        return await self._thread.ask(look, timeout_s)

    async def profile(self, folder: Path, steps: int, timeout_s: float) -> int:
        if self._profiler is None:
            raise JaxserveError("this engine has no profiler: EngineLoop(engine, profiler=jaxserve.runtime.profile)")
        try:
            await asyncio.to_thread(self._profiler.start, folder)
        except RuntimeError as error:
            raise ProfileRunning("a profile is being taken: wait for its end") from error
        try:
            counted = StepCount(steps)
            await self._thread.ask(counted.begin, PROFILE_PATIENCE_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await counted.reached.wait()
            with suppress(TimeoutError, EngineStopped):  # a step that hangs: then that is what the profile shows
                await self._thread.ask(counted.end, PROFILE_PATIENCE_S)
        finally:
            await asyncio.to_thread(self._profiler.stop, folder)
        return counted.count
