"""From engine requests to an answer. Every generating route comes through here, with a `Job`: its requests, and an
`Answer`, which knows its format.

    whole        collect everything, then one JSON body
    stream       wait for the first output, since a refusal still has a status of its own; then events
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import pydantic_core
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from jaxserve.core.errors import StepFailed
from jaxserve.core.sequence import FinishReason
from jaxserve.core.sequence import Request as EngineRequest
from jaxserve.engine.collect import Collector, RequestOutput
from jaxserve.engine.outputs import SequenceOutput
from jaxserve.engine.stream import OutputStream
from jaxserve.server.context import Call, LoggedText
from jaxserve.server.errors import ClientLeft
from jaxserve.server.service import Service
from jaxserve.server.stream import EventStream, wait_for_disconnect

_T = TypeVar("_T")
LARGE = 10_000
"""Log-probabilities from which on an answer is written on a thread: the event loop serves others meanwhile. With 20 of
each of 8192 prompt tokens that took 0.3 s."""


class Answer(Protocol):
    """One API's format."""

    def whole(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """The body of an answer without `stream`."""
        ...

    def events(self, outputs: Sequence[SequenceOutput]) -> list[bytes]:
        """The payloads of a stream for outputs that became ready together, one a token."""
        ...

    def last_events(self) -> list[bytes]:
        """What follows the last output, before [DONE]."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    requests: list[EngineRequest]
    answer: Answer
    timeout_s: float | None
    id: str
    """The answer's."""

    def is_large(self, *, streamed: bool = False) -> bool:
        """Whether writing the answer takes long, because of the number of log-probabilities.

        `streamed`: those of outputs are written one by one.
        """
        count = 0
        for wanted in self.requests:
            params = wanted.params
            if params.prompt_logprobs is not None:
                count += len(wanted.prompt) * (params.prompt_logprobs + 1)
            if params.logprobs is not None and not streamed:
                count += params.n * (params.max_tokens or LARGE) * (params.logprobs + 1)
        return count > LARGE


async def respond(request: Request, service: Service, job: Job, stream: bool) -> Response:
    """The HTTP response to a job, whole or a stream; a client that leaves first aborts it."""
    call: Call = request.state.call
    note(call, service, job, stream)
    if not stream:
        answer = await unless_left(request, whole(service, job, call))
        if not job.is_large():
            return JSONResponse(answer)
        return Response(await asyncio.to_thread(pydantic_core.to_json, answer), media_type="application/json")
    backlog = service.config.max_stream_backlog
    outputs = service.client.open(job.requests, timeout_s=job.timeout_s, max_backlog=backlog)
    first = await unless_left(request, _first(outputs))
    return EventStream(outputs, _payloads(first, outputs, job, call))


def note(call: Call, service: Service, job: Job, stream: bool = False) -> None:
    """A call remembers what it asks of the engine, for the log, its trace and /debug."""
    call.requests, call.stream, call.response_id = job.requests, stream, job.id
    for name in (call.request_id, job.id):
        service.names.note(name, [wanted.id for wanted in job.requests])
    call.prompt_tokens = sum(len(wanted.prompt) for wanted in job.requests)
    if service.config.log_text:
        most = service.config.max_log_len
        call.text = LoggedText([service.shown(wanted.prompt[: most + 1]) for wanted in job.requests], most)


async def whole(service: Service, job: Job, call: Call) -> dict[str, Any]:
    """A job's whole answer, also for whoever is no HTTP client; `call` counts what comes.

    Raises:
      StepFailed: the engine's step failed under it. All that `OutputStream.next` raises.
    """
    stream = service.client.open(job.requests, timeout_s=job.timeout_s)
    collectors = {wanted.id: Collector(wanted) for wanted in job.requests}
    try:
        while outputs := await stream.next():
            for output in outputs:
                check_step(output)
                collectors[output.request_id].add(output)
                call.count(output)
    finally:
        stream.close()
    found = [collector.output for collector in collectors.values()]
    return await asyncio.to_thread(job.answer.whole, found) if job.is_large() else job.answer.whole(found)


async def unless_left(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """The work's result. Raises ClientLeft if the client leaves first: that aborts its requests."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(wait_for_disconnect(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _first(stream: OutputStream) -> list[SequenceOutput]:
    try:
        outputs = await stream.next()
        for output in outputs:
            check_step(output)
        return outputs
    except BaseException:
        stream.close()
        raise


async def _payloads(
    first: list[SequenceOutput], stream: OutputStream, job: Job, call: Call
) -> AsyncGenerator[list[bytes], None]:
    """Payloads that are ready together, together: they go out in one write."""
    outputs, events, large = first, job.answer.events, job.is_large(streamed=True)
    try:
        while outputs:
            for output in outputs:
                check_step(output)
                call.count(output)
            yield await asyncio.to_thread(events, outputs) if large else events(outputs)
            outputs = await stream.next()
        yield job.answer.last_events()
    except Exception as error:
        call.failure = type(error).__name__
        raise


def check_step(output: SequenceOutput) -> None:
    if output.finish_reason is FinishReason.ERROR:
        raise StepFailed(output.error)
