"""`/v1/batches`: the routes, and what a line of a batch does when its turn comes."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from jaxserve.batches.errors import InUse
from jaxserve.batches.lines import Line
from jaxserve.batches.records import Batch
from jaxserve.batches.runner import BatchRunner, LineResult
from jaxserve.batches.store import Store
from jaxserve.core.errors import EngineStopped, JaxserveError, StepFailed, TooBusy
from jaxserve.core.server_sections import BatchConfig
from jaxserve.core.tenants import Tenant
from jaxserve.server import chat, completions
from jaxserve.server.body import read_body
from jaxserve.server.context import Call
from jaxserve.server.errors import error_body, status_of
from jaxserve.server.files import list_response, page_of, store_of
from jaxserve.server.generation import Job, note, whole
from jaxserve.server.log import logger
from jaxserve.server.schemas.batches import BatchBody
from jaxserve.server.schemas.chat import ChatBody
from jaxserve.server.schemas.completions import CompletionsBody
from jaxserve.server.service import Service
from jaxserve.server.state import ServerState
from jaxserve.server.traces import RequestTraces

STEP_RETRIES = 2
"""A line whose step failed is run so many times more before the failure is its result."""
Ended = Callable[[Batch, Line, Call, int], None]
"""Told of a line that has its result, with the status of it."""


class Batches:
    """A store and its runner, beside a service."""

    def __init__(self, store: Store, config: BatchConfig) -> None:
        self.store, self.config = store, config
        self.runner: BatchRunner | None = None

    def room(self, service: Service, state: ServerState) -> int:
        """Sequences that lines may have: what is left of the slots that nobody else uses. A server that drains, or
        whose engine has stopped, begins no line."""
        if state.phase != "ready" or state.trouble():
            return 0
        running = self.runner.num_running if self.runner is not None else 0
        others = max(0, service.client.num_open - running)  # a line that waits to try again has none open
        return max(0, min(self.config.batch_concurrency, service.facts.max_num_seqs - others))

    def share(self, tenant: Tenant) -> int:
        """Sequences that the lines of a tenant's own batches may have at once: 1 or more."""
        return max(1, int(tenant.batch_share * self.config.batch_concurrency))

    @property
    def num_lines(self) -> int:
        """Lines that run."""
        return 0 if self.runner is None else self.runner.num_lines

    @asynccontextmanager
    async def running(
        self, service: Service, state: ServerState, traces: RequestTraces | None = None
    ) -> AsyncIterator[None]:
        """Run batches until the context ends."""

        def ended(batch: Batch, line: Line, call: Call, status: int) -> None:
            state.telemetry.line_ended(batch.endpoint, status)
            if traces is not None:
                call.trace_id = traces.line_ended(call, batch, line, status, service.model_name)
            _tell_line(batch, line, call, status)

        async def run_line(batch: Batch, line: Line) -> LineResult:
            return await self.run_line(service, batch, line, ended)

        self.runner = BatchRunner(
            self.store,
            run_line,
            lambda: self.room(service, state),
            max_lines=self.config.batch_max_lines,
            share=lambda tenant: self.share(service.facts.tenants[tenant]),
            changed=tell,
            report=logger.warning,
        )
        task = asyncio.create_task(self.runner.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def run_line(self, service: Service, batch: Batch, line: Line, ended: Ended) -> LineResult:
        """As the endpoint would answer; waits and tries again while the server is too busy.

        Raises EngineStopped; whatever else goes wrong is the line's result, or it would keep its batch from ending.
        """
        request_id, began_s, failures = f"req-{uuid.uuid4().hex}", time.monotonic(), 0
        while True:
            call = Call(
                request_id, tenant=self.config.batch_tenant, tenant_by="a batch", owner=batch.tenant, began_s=began_s
            )
            try:
                job = await _job_of(service, batch.endpoint, line.body, call)
                note(call, service, job)
                answer = await whole(service, job, call)
                ended(batch, line, call, 200)
                return LineResult(200, answer, request_id)
            except TooBusy as error:
                await asyncio.sleep(min(error.retry_after_s, 30.0))
            except EngineStopped:
                raise
            except Exception as error:
                failures += isinstance(error, StepFailed)
                if isinstance(error, StepFailed) and failures <= STEP_RETRIES:
                    continue
                if not isinstance(error, JaxserveError):
                    logger.error("batch line failed", exc_info=error, extra={"fields": {"request_id": request_id}})
                call.failure = type(error).__name__
                status, _ = status_of(error)
                ended(batch, line, call, status)
                return LineResult(status, error_body(error), request_id)


async def _job_of(service: Service, endpoint: str, body: dict[str, Any], call: Call) -> Job:
    if endpoint == "/v1/chat/completions":
        return await chat.job_of(service, ChatBody.check(body), call)
    return await completions.job_of(service, CompletionsBody.check(body), call)


def tell(batch: Batch) -> None:
    """A batch has another status: a line in the log."""
    fields: dict[str, Any] = {
        "batch_id": batch.id,
        "tenant": batch.tenant,
        "status": batch.status,
        "lines": batch.total,
        "completed": batch.completed,
        "failed": batch.failed,
    }
    logger.info("batch", extra={"fields": fields})


def _tell_line(batch: Batch, line: Line, call: Call, status: int) -> None:
    fields: dict[str, Any] = {
        "request_id": call.request_id,
        "tenant": call.tenant,
        "batch_id": batch.id,
        "line": line.number + 1,
    }
    logger.info("batch line", extra={"fields": fields | call.log_fields(status)})


async def create(request: Request) -> Response:
    store = store_of(request)
    body = BatchBody.parse(await read_body(request))
    batch = await asyncio.to_thread(
        store.add_batch, request.state.call.tenant, body.endpoint, body.input_file_id, body.completion_window,
        body.window_s, body.metadata, time.time(), request.app.state.batches.config.batch_max_open,
    )  # fmt: skip
    tell(batch)
    _wake(request)
    return JSONResponse(batch.body())


async def listing(request: Request) -> Response:
    after, limit = page_of(request)
    batches, more = await asyncio.to_thread(store_of(request).batches, request.state.call.tenant, after, limit)
    return list_response([batch.body() for batch in batches], more)


async def retrieve(request: Request) -> Response:
    batch_id, tenant = request.path_params["batch_id"], request.state.call.tenant
    batch = await asyncio.to_thread(store_of(request).batch, batch_id, tenant)
    return JSONResponse(batch.body())


async def cancel(request: Request) -> Response:
    store, batch_id = store_of(request), request.path_params["batch_id"]
    batch = await asyncio.to_thread(store.batch, batch_id, request.state.call.tenant)
    if batch.status in ("validating", "in_progress"):
        batch = await asyncio.to_thread(store.move, batch_id, "cancelling", time.time())
        tell(batch)
        _wake(request)
    elif batch.status != "cancelling":
        raise InUse(f"batch {batch_id} is {batch.status}: only one that has not ended can be cancelled", "batch_id")
    return JSONResponse(batch.body())


def _wake(request: Request) -> None:
    runner = request.app.state.batches.runner
    if runner is not None:
        runner.wake()
