"""`/v1/batches`: the routes, and what a line of a batch does when its turn comes."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from jaxserve.batches.errors import InUse
from jaxserve.batches.runner import BatchRunner, LineResult
from jaxserve.batches.store import Store
from jaxserve.core.config import BatchConfig
from jaxserve.core.errors import EngineStopped, JaxserveError, StepFailed, TooBusy
from jaxserve.server import chat, completions
from jaxserve.server.body import read_body
from jaxserve.server.context import Call
from jaxserve.server.errors import error_body, status_of
from jaxserve.server.files import list_response, page_of, store_of
from jaxserve.server.generation import whole
from jaxserve.server.log import logger
from jaxserve.server.schemas.batches import BatchBody
from jaxserve.server.schemas.chat import ChatBody
from jaxserve.server.schemas.completions import CompletionsBody
from jaxserve.server.service import Service

STEP_RETRIES = 2
"""A line whose step failed is run so many times more before the failure is its result."""


class Batches:
    """A store and its runner, beside a service."""

    def __init__(self, store: Store, config: BatchConfig) -> None:
        self.store, self.config = store, config
        self.runner: BatchRunner | None = None

    def room(self, service: Service) -> int:
        """Lines that may run: what is left of the slots that nobody else uses."""
        running = self.runner.num_running if self.runner is not None else 0
        others = service.loop.num_open - running
        return max(0, min(self.config.batch_concurrency, service.max_num_seqs - others))

    @asynccontextmanager
    async def running(self, service: Service) -> AsyncIterator[None]:
        """Run batches until the context ends."""

        async def run_line(endpoint: str, body: dict[str, Any]) -> LineResult:
            return await self._run_line(service, endpoint, body)

        self.runner = BatchRunner(
            self.store,
            run_line,
            lambda: self.room(service),
            max_lines=self.config.batch_max_lines,
            report=logger.warning,
        )
        task = asyncio.create_task(self.runner.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run_line(self, service: Service, endpoint: str, body: dict[str, Any]) -> LineResult:
        """As the endpoint would answer; waits and tries again while the server is too busy."""
        call = Call(f"req-{uuid.uuid4().hex}", tenant=self.config.batch_tenant, tenant_by="a batch")
        failures = 0
        while True:
            try:
                if endpoint == "/v1/chat/completions":
                    job = await chat.job_of(service, ChatBody.check(body), call)
                else:
                    job = await completions.job_of(service, CompletionsBody.check(body), call)
                return LineResult(200, await whole(service, job), call.request_id)
            except TooBusy as error:
                await asyncio.sleep(min(error.retry_after_s, 30.0))
            except EngineStopped:
                raise
            except JaxserveError as error:
                failures += isinstance(error, StepFailed)
                if not isinstance(error, StepFailed) or failures > STEP_RETRIES:
                    return LineResult(status_of(error)[0], error_body(error), call.request_id)


async def create(request: Request) -> Response:
    store = store_of(request)
    body = BatchBody.parse(await read_body(request))
    batch = await asyncio.to_thread(
        store.add_batch, request.state.call.tenant, body.endpoint, body.input_file_id, body.completion_window,
        body.window_s, body.metadata, time.time(),
    )  # fmt: skip
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
        _wake(request)
    elif batch.status != "cancelling":
        raise InUse(f"batch {batch_id} is {batch.status}: only one that has not ended can be cancelled", "batch_id")
    return JSONResponse(batch.body())


def _wake(request: Request) -> None:
    runner = request.app.state.batches.runner
    if runner is not None:
        runner.wake()
