"""What a front end, such as the HTTP server, needs of an engine, wherever that runs.

`engine.loop.EngineLoop` is the client of an engine in this process. What goes in and what comes out is data, so that
another implementation can speak to an engine in another process.

    at once              facts, alive, failure, step_age_s, num_steps, num_open, compilations, counts, stack
    between two steps    snapshot, view, decisions, request_states: up to `timeout_s`, for the step under way
    as they come         open: a stream of outputs
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxserve.core.decisions import Decision
from jaxserve.core.sequence import Request
from jaxserve.engine.facts import Compilations, EngineFacts, RequestState
from jaxserve.engine.stream import OutputStream
from jaxserve.metrics.counts import Counts
from jaxserve.metrics.snapshot import Snapshot
from jaxserve.metrics.view import Seen


class EngineClient(Protocol):
    """Used from the event loop on which it was started. Questions raise TimeoutError and EngineStopped."""

    def start(self) -> None: ...

    async def stop(self) -> None:
        """End the engine after its step; requests under way get EngineStopped."""
        ...

    # --- requests ---------------------------------------------------------------------------------------------

    def open(
        self, requests: Sequence[Request], *, timeout_s: float | None = None, max_backlog: int | None = None
    ) -> OutputStream:
        """Queue requests and return the stream of all their outputs. Closing it aborts those that have not ended.

        Raises:
          EngineStopped, DuplicateRequest: nothing was queued. Other refusals come from the stream's `next`.
        """
        ...

    def fail_open(self, error: Exception) -> None:
        """End every stream with `error`, and abort its requests."""
        ...

    # --- what is known at once --------------------------------------------------------------------------------

    @property
    def facts(self) -> EngineFacts: ...

    @property
    def alive(self) -> bool:
        """It serves: it was started, was not stopped, and has not failed."""
        ...

    @property
    def failure(self) -> Exception | None:
        """What ended it, if something did."""
        ...

    @property
    def step_age_s(self) -> float:
        """How long the step under way has been running; 0 between steps."""
        ...

    @property
    def num_steps(self) -> int:
        """Steps that have ended since `start`."""
        ...

    @property
    def num_open(self) -> int:
        """Sequences that have not ended, of all streams."""
        ...

    @property
    def compilations(self) -> Compilations: ...

    @property
    def counts(self) -> Counts:
        """Counters and histograms of its steps since `start`; read only."""
        ...

    def stack(self) -> str:
        """Where the engine's thread is at this moment, to find out why a step hangs."""
        ...

    # --- questions --------------------------------------------------------------------------------------------

    async def snapshot(self, timeout_s: float) -> Snapshot:
        """What gauges show."""
        ...

    async def view(self, seen: Seen, timeout_s: float) -> tuple[dict[str, Any], Seen]:
        """(what the dashboard shows, what its reader will have seen): see `metrics.view`."""
        ...

    async def decisions(self, timeout_s: float) -> list[Decision]:
        """The steps that the scheduler's journal remembers, oldest first."""
        ...

    async def request_states(self, request_ids: Sequence[str], timeout_s: float) -> Mapping[str, RequestState]:
        """By sequence id, live or ended; requests that are not known, or not any more, are left out."""
        ...

    async def profile(self, folder: Path, steps: int, timeout_s: float) -> int:
        """Write a profile of the next `steps` steps to `folder`; returns the number of steps in it.

        `timeout_s`: it ends by then, however few steps have run.

        Raises:
          ProfileRunning: the process is being profiled already.
        """
        ...
