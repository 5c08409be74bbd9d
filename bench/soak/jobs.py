"""Batch jobs that go on through every death of the server; at the end each line must have exactly one result."""

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from bench.soak.disk import Disk
from bench.soak.outcome import Check, Tally
from bench.soak.wire import Reply, ask, form, message

ENDED = ("completed", "failed", "expired", "cancelled")
OPEN_BATCHES = 3


@dataclass(frozen=True)
class Expected:
    """Lines by custom_id: the tokens each is to have; 0: refused."""

    tokens: dict[str, int]
    cancelled: bool


class Jobs:
    """Makes batches, and knows what their results must be."""

    def __init__(self, rng: random.Random, tally: Tally, disk: Disk) -> None:
        self._rng, self._tally, self._disk = rng, tally, disk
        self.expected: dict[str, Expected] = {}
        self._confirmed: set[str] = set()

    async def run(self, port: int, ends: asyncio.Event) -> None:
        """Keep a few batches open until `ends`. A server that dies under it is no surprise."""
        try:
            while not ends.is_set():
                if await self._num_open(port) < OPEN_BATCHES:
                    await self._begin(port)
                await asyncio.sleep(0.3)
        except (OSError, EOFError):
            self._tally.note("batch", "killed")

    async def _begin(self, port: int) -> None:
        name = f"soak-{len(self.expected)}"
        tokens = {f"{name}-{i}": self._rng.choice((0, 1, 5, 20)) for i in range(self._rng.randint(5, 60))}
        lines = [_line(custom_id, count, self._rng.randint(1, 40)) for custom_id, count in tokens.items()]
        content, kind = form("batch", "\n".join(lines).encode())
        uploaded = await self._ask("upload", port, message("POST", "/v1/files", content, kind))
        if uploaded.status != 200:
            return
        self.expected[name] = Expected(tokens, self._rng.random() < 0.15)  # before it is asked: the answer may be lost
        asked = {
            "input_file_id": uploaded.json()["id"], "endpoint": "/v1/completions", "completion_window": "24h",
            "metadata": {"name": name},
        }  # fmt: skip
        made = await self._ask("batch", port, message("POST", "/v1/batches", asked))
        if made.status != 200:
            del self.expected[name]
            return
        self._confirmed.add(name)
        if self.expected[name].cancelled:
            await asyncio.sleep(self._rng.uniform(0.0, 1.0))
            cancelled = message("POST", f"/v1/batches/{made.json()['id']}/cancel")
            await self._ask("cancel", port, cancelled, (200, 409, 429))

    async def _ask(self, kind: str, port: int, sent: bytes, allowed: tuple[int, ...] = (200, 429)) -> Reply:
        """A full disk is announced with 507, and only a full disk is."""
        full = self._disk.full
        reply = await ask(port, sent)
        self._tally.status(kind, reply.status)
        if reply.status not in allowed and not (reply.status == 507 and (full or self._disk.full)):
            self._tally.fail(kind, f"{reply.status}: {reply.body[:150]!r}")
        return reply

    async def upload_while_full(self, port: int) -> None:
        """Uploads that there is no room for, until there is; those that find room after all are deleted."""
        content, kind = form("batch", b" " * 300_000)
        while self._disk.full:
            reply = await self._ask("upload, full disk", port, message("POST", "/v1/files", content, kind))
            if reply.status == 200:
                await self._ask("upload, full disk", port, message("DELETE", f"/v1/files/{reply.json()['id']}"))
            await asyncio.sleep(0.2)

    async def _num_open(self, port: int) -> int:
        return sum(batch["status"] not in ENDED for batch in await batches(port))

    async def wait_until_ended(self, port: int, timeout_s: float) -> bool:
        for _ in range(int(timeout_s / 0.3)):
            if not await self._num_open(port):
                return True
            await asyncio.sleep(0.3)
        return False

    async def check(self, port: int) -> list[Check]:
        """Read every batch's results: no line lost, none twice, each as long as it must be."""
        kept = {batch["metadata"]["name"]: batch for batch in await batches(port)}
        lost: list[str] = []
        twice: list[str] = []
        wrong: list[str] = []
        lines = cancelled = 0
        for name, batch in kept.items():
            expected = self.expected[name]
            results = [*await _results(port, batch["output_file_id"]), *await _results(port, batch["error_file_id"])]
            counts = Counter(result["custom_id"] for result in results)
            twice += [custom_id for custom_id, count in counts.items() if count > 1]
            wrong += [custom_id for custom_id in counts.keys() - expected.tokens.keys()]
            wrong += [r["custom_id"] for r in results if not _as_expected(r, expected.tokens.get(r["custom_id"], -1))]
            lines += len(counts)
            cancelled += batch["status"] == "cancelled"
            if batch["status"] == "completed":
                lost += [custom_id for custom_id in expected.tokens if custom_id not in counts]
            elif batch["status"] != "cancelled" or not expected.cancelled:
                lost.append(f"{name} is {batch['status']}")
        gone = self._confirmed - kept.keys()
        told = f"{len(kept)} batches ({cancelled} cancelled), {lines} results"
        return [
            Check("batch lines lost", f"{len(lost)} of {told}", not lost and bool(lines)),
            Check("batch lines doubled", str(len(twice)), not twice),
            Check("batch lines with another result", str(len(wrong)), not wrong),
            Check("batches lost", f"{len(gone)} of {len(self._confirmed)} that were confirmed", not gone),
        ]


async def batches(port: int) -> list[dict[str, Any]]:
    """All of them, page by page."""
    found: list[dict[str, Any]] = []
    after = ""
    while True:
        page = (await ask(port, message("GET", f"/v1/batches?limit=100{after}"))).json()
        found += page["data"]
        if not page["has_more"]:
            return found
        after = f"&after={page['last_id']}"


async def _results(port: int, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    reply = await ask(port, message("GET", f"/v1/files/{file_id}/content"))
    return [json.loads(line) for line in reply.body.splitlines()]


def _line(custom_id: str, tokens: int, words: int) -> str:
    body: dict[str, Any] = {"prompt": "thou " * words, "max_tokens": tokens or 1, "ignore_eos": True}
    if not tokens:
        body["temperature"] = -1  # refused
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body})


def _as_expected(result: dict[str, Any], tokens: int) -> bool:
    response = result["response"] or {"status_code": 0}
    if result["error"] is not None or tokens == 0:
        return result["error"] is None and response["status_code"] == 400
    return response["status_code"] == 200 and response["body"]["usage"]["completion_tokens"] == tokens
