"""The kinds of calls, good and bad, and what each may be answered. Whatever else comes is wrong."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from bench.soak.outcome import Tally
from bench.soak.wire import Reply, ask, connect, message

GENERATING = ("/v1/completions", "/v1/chat/completions", "/generate")
LINES = ("ROMEO:\n", "JULIET:\nO ", "KING HENRY:\nOnce more ", "First Citizen:\n", "To be, ", "MENENIUS:\nWhat ")
FLOOD = 100
CROWD, CROWD_TOKENS = 8, 120
"""More at once than there are blocks for: some must be preempted."""
SLOW_S = 6.0
"""How long a slow reader leaves its answer unread: twice the server's write_timeout_s."""

GOOD = {"prompt": "a", "max_tokens": 1}
MALFORMED: tuple[tuple[str, Any], ...] = (
    ("/v1/completions", b'{"prompt": "a"'),
    ("/v1/completions", b"\xff\xfe\x00"),
    ("/v1/completions", b"[" * 5000),
    ("/v1/completions", {}),
    ("/v1/completions", GOOD | {"temprature": 1}),
    ("/v1/completions", GOOD | {"temperature": -1}),
    ("/v1/completions", GOOD | {"n": 10**9}),
    ("/v1/completions", GOOD | {"max_tokens": 10**30}),
    ("/v1/completions", GOOD | {"prompt": [10**9]}),
    ("/v1/completions", GOOD | {"prompt": "word " * 20_000}),
    ("/v1/completions", GOOD | {"model": "gpt-5"}),
    ("/v1/completions", GOOD | {"tenant": "nobody"}),
    ("/v1/completions", GOOD | {"logit_bias": {"x": 1}}),
    ("/v1/completions", GOOD | {"stop": [""]}),
    ("/v1/chat/completions", {"messages": []}),
    ("/v1/chat/completions", {"messages": [{"role": 5}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "tools": [{}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user"}], "chat_template_kwargs": {"messages": 1}}),
    ("/v1/completions", GOOD | {"prompt": ["a"] * 100}),
    ("/generate", GOOD | {"prompt_token_ids": [1]}),
    ("/v1/batches", {"input_file_id": "none", "endpoint": "/v1/completions", "completion_window": "24h"}),
    ("/v1/files", b"no form"),
    ("/nowhere", GOOD),
    ("/v1/completions", b" " * ((4 << 20) + 1)),
)


def body(rng: random.Random, path: str, max_tokens: int) -> dict[str, Any]:
    """A request that can be served, with a few of the fields that people send."""
    text = rng.choice(LINES) * rng.randint(1, 12)
    fields: dict[str, Any] = {"max_tokens": max_tokens, "ignore_eos": True, "seed": rng.randrange(2**31)}
    fields |= {"messages": [{"role": "user", "content": text}]} if "chat" in path else {"prompt": text}
    choices: tuple[dict[str, Any], ...] = (
        {"temperature": 0}, {"top_k": 20}, {"top_p": 0.9}, {"n": rng.randint(1, 3)}, {"presence_penalty": 0.5},
        {"logprobs": True if "chat" in path else 2}, {"priority": rng.randint(0, 2)}, {"cache_salt": "s"},
        {"tenant": "default", "ttft_slo_s": 1.0, "tpot_slo_s": 0.1}, {"repetition_penalty": 1.1}, {},
    )  # fmt: skip
    return fields | rng.choice(choices)


class Calls:
    """Makes calls of all kinds against one life of the server."""

    def __init__(self, port: int, rng: random.Random, tally: Tally) -> None:
        self._port, self._rng, self._tally = port, rng, tally
        self._slow = asyncio.Semaphore(1)
        self.dying = False
        """The server is being killed: an answer that breaks off is no surprise."""
        self._kinds: tuple[tuple[int, str, Callable[[str], Awaitable[None]]], ...] = (
            (30, "whole answer", self._whole),
            (30, "stream", self._stream),
            (10, "stream left", self._leave),
            (8, "left unanswered", self._leave_at_once),
            (6, "deadline", self._deadline),
            (20, "malformed", self._malformed),
            (4, "half sent", self._half),
            (1, "slow reader", self._slow_reader),
            (1, "flood", self._flood),
            (8, "probe", self._probe),
        )

    async def run(self, ends: asyncio.Event) -> None:
        """One call after another until `ends`."""
        weights = [weight for weight, _, _ in self._kinds]
        while not ends.is_set() and not self.dying:
            ((_, kind, call),) = self._rng.choices(self._kinds, weights)
            await self._guarded(kind, call(kind))

    async def _guarded(self, kind: str, work: Awaitable[None]) -> None:
        try:
            await work
        except (OSError, EOFError, TimeoutError) as error:
            if self.dying:
                self._tally.note(kind, "killed")
            else:
                self._tally.fail(kind, f"{type(error).__name__}: {error}")

    async def _post(self, kind: str, path: str, fields: Any, allowed: tuple[int, ...]) -> Reply:
        reply = await ask(self._port, message("POST", path, fields))
        self._judge(kind, reply, allowed)
        return reply

    def _judge(self, kind: str, reply: Reply, allowed: tuple[int, ...]) -> None:
        self._tally.status(kind, reply.status)
        if reply.status not in allowed:
            self._tally.fail(kind, f"{reply.status}: {reply.body[:150]!r}")
        elif reply.status >= 400 and not reply.json()["error"]["message"]:
            self._tally.fail(kind, f"{reply.status} without a message")
        elif reply.status == 429 and "retry-after" not in reply.headers:
            self._tally.fail(kind, "429 without Retry-After")

    def _some(self) -> tuple[str, dict[str, Any], int]:
        path, length = self._rng.choice(GENERATING), self._rng.randint(1, 24)
        fields = body(self._rng, path, length)
        if path == "/generate" and fields.get("logprobs") is True:
            fields["logprobs"] = 1
        return path, fields, length * fields.get("n", 1)

    # --- the kinds ----------------------------------------------------------------------------------------------

    async def _whole(self, kind: str) -> None:
        path, fields, tokens = self._some()
        reply = await self._post(kind, path, fields, (200, 429))
        if reply.status == 200 and (counted := reply.json()["usage"]["completion_tokens"]) != tokens:
            self._tally.fail(kind, f"{counted} tokens for {tokens}")

    async def _stream(self, kind: str) -> None:
        """Every token an event, then the usage, then DONE."""
        path, fields, tokens = self._some()
        options = {} if path == "/generate" else {"stream_options": {"include_usage": True}}
        reply = await self._post(kind, path, fields | {"stream": True} | options, (200, 429))
        if reply.status != 200:
            return
        events = reply.events()
        if events[-1] is not None or any(event is None or "error" in event for event in events[:-1]):
            self._tally.fail(kind, f"ends with {events[-2:]}")
        elif path == "/generate":
            if (counted := sum(len(event["token_ids"]) for event in events[:-1])) != tokens:
                self._tally.fail(kind, f"{counted} tokens for {tokens}")
        elif (counted := events[-2]["usage"]["completion_tokens"]) != tokens:
            self._tally.fail(kind, f"{counted} tokens for {tokens}")

    async def _leave(self, kind: str) -> None:
        path, fields, _ = self._some()
        reader, writer = await connect(self._port)
        writer.write(message("POST", path, fields | {"stream": True, "max_tokens": 400, "n": 1}))
        for _ in range(self._rng.randint(1, 6)):
            await reader.readline()
        await self._go(kind, writer)

    async def _leave_at_once(self, kind: str) -> None:
        path, fields, _ = self._some()
        _, writer = await connect(self._port)
        writer.write(message("POST", path, fields | {"max_tokens": 400, "n": 1}))
        await writer.drain()
        await asyncio.sleep(self._rng.choice((0.0, 0.02, 0.2)))
        await self._go(kind, writer)

    async def _half(self, kind: str) -> None:
        """Half of a request, and then nothing: some leave, some wait to be cut."""
        whole = message("POST", "/v1/completions", GOOD)
        reader, writer = await connect(self._port)
        writer.write(whole[: self._rng.randint(1, len(whole) - 1)])
        await writer.drain()
        if self._rng.random() < 0.7:
            await self._go(kind, writer)
            return
        async with asyncio.timeout(20):
            await reader.read(-1)
        writer.close()
        self._tally.note(kind, "cut")

    async def _go(self, kind: str, writer: asyncio.StreamWriter) -> None:
        if self._rng.random() < 0.5:
            writer.transport.abort()  # a reset instead of a farewell
        else:
            writer.close()
        self._tally.note(kind, "left")

    async def _deadline(self, kind: str) -> None:
        path, fields, _ = self._some()
        late = {"max_tokens": 400, "n": 1, "timeout": self._rng.uniform(0.01, 0.3)}
        await self._post(kind, path, fields | late, (200, 429, 504))

    async def _malformed(self, kind: str) -> None:
        path, fields = self._rng.choice(MALFORMED)
        await self._post(kind, path, fields, (400, 404, 405, 413, 429))

    async def _slow_reader(self, kind: str) -> None:
        """Asks for megabytes and does not read them; either all of it fits into the system's buffers, or it is cut."""
        if self._slow.locked():  # one at a time: it takes the engine for seconds
            return
        async with self._slow:
            fields = GOOD | {
                "prompt": "a",
                "max_tokens": 500,
                "n": 4,
                "ignore_eos": True,
                "logprobs": 20,
                "stream": True,
            }
            reader, writer = await connect(self._port, receive_buffer=4096)
            writer.write(message("POST", "/generate", fields))
            raw = await reader.readline()
            await asyncio.sleep(SLOW_S)
            try:
                async with asyncio.timeout(30):
                    raw += await reader.read(-1)
            except ConnectionResetError:
                pass
            writer.close()
            if b" 200 " in raw and b"[DONE]" not in raw:
                self._tally.note(kind, "cut")
            else:
                self._judge(kind, Reply(int(raw.split(b" ", 2)[1]), {"retry-after": "?"}, b'{"error":{"message":"?"}}'),
                            (200, 429))  # fmt: skip

    async def _flood(self, kind: str) -> None:
        async def one() -> None:
            path = self._rng.choice(GENERATING)
            await self._post(kind, path, body(self._rng, path, 4) | {"logprobs": None, "n": 1}, (200, 429))

        await asyncio.gather(*(self._guarded(kind, one()) for _ in range(FLOOD)))

    async def crowd(self) -> None:
        """While the disk is full: preempted sequences cannot be parked there."""

        async def one() -> None:
            fields = body(self._rng, "/v1/completions", CROWD_TOKENS) | {"n": 1}
            await self._post("crowd, full disk", "/v1/completions", fields, (200, 429))

        await asyncio.gather(*(self._guarded("crowd, full disk", one()) for _ in range(CROWD)))

    async def _probe(self, kind: str) -> None:
        paths = (
            "/health",
            "/ready",
            "/metrics",
            "/v1/models",
            "/version",
            "/openapi.json",
            "/v1/files",
            "/dashboard/state",
        )
        reply = await ask(self._port, message("GET", self._rng.choice(paths)))
        self._judge(kind, reply, (200,))
