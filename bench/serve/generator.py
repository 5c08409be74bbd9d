"""Sends requests when they are due and collects the answers, in one event loop."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from bench.serve.answer import Answer
from jaxserve.sim.sources import Source

Send = Callable[[Answer, Callable[[], float]], Awaitable[None]]
"""Sends the request of an answer and fills it in; the clock gives seconds since the load began."""


async def run_load(
    source: Source, send: Send, watch: Callable[[Answer, str], None] = lambda answer, what: None
) -> list[Answer]:
    """Every answer, in the order of the requests. `watch` is told of each when it is "sent" and when it has "ended"."""
    loop = asyncio.get_running_loop()
    begin = loop.time()

    def now() -> float:
        return loop.time() - begin

    answers: list[Answer] = []
    open_requests: set[asyncio.Task[None]] = set()
    ended = asyncio.Event()

    async def one(answer: Answer) -> None:
        watch(answer, "sent")
        try:
            await send(answer, now)
        finally:
            source.ended(now(), answer.number)
            watch(answer, "ended")
            ended.set()

    while source.more:
        due = source.next_s
        if due is None or due > now():
            await _either(ended, None if due is None else due - now())
            continue
        number, arrival = source.take()
        answers.append(Answer(number, arrival, prompt_tokens=arrival.prompt_tokens))
        task = asyncio.create_task(one(answers[-1]))
        open_requests.add(task)
        task.add_done_callback(open_requests.discard)
    await asyncio.gather(*open_requests)
    return answers


async def _either(event: asyncio.Event, seconds: float | None) -> None:
    """Wait for the event or so many seconds; clears the event."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):  # wait_for of Python 3.11 can lose a cancellation
            await event.wait()
    event.clear()
