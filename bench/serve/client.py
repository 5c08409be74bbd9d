"""One connection pool to an OpenAI-compatible server: vLLM, llama.cpp, OpenVINO Model Server, this one."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

try:
    import aiohttp
except ImportError:  # a client says so when it is made: --help works without it
    aiohttp = None

from bench.serve.answer import Answer, StreamReading
from jaxserve.core.errors import ConfigError, JaxserveError

REFUSALS = {429: "queue_full", 503: "queue_full"}


class ServerError(JaxserveError):
    """The server cannot be reached, or says no before the load has begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """What is sent. `chat`: the prompt is one user's message to /v1/chat/completions."""

    model: str
    chat: bool = False
    ignore_eos: bool = True
    """An extension of vLLM that most servers know: answers have the length that the workload says."""
    temperature: float = 0.0
    extra: dict[str, Any] | None = None

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    def body(self, prompt: str | list[int], max_tokens: int, stream: bool = True) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "max_tokens": max_tokens, "temperature": self.temperature}
        body |= {"messages": [{"role": "user", "content": prompt}]} if self.chat else {"prompt": prompt}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if self.ignore_eos:
            body["ignore_eos"] = True
        return body | (self.extra or {})


class Client:
    """Use as an async context manager. `key`: sent as a bearer token.

    Raises:
      ConfigError: aiohttp is not installed.
    """

    def __init__(self, url: str, key: str | None = None, timeout_s: float = 3600.0) -> None:
        if aiohttp is None:
            raise ConfigError("aiohttp is not installed: pip install 'jaxserve[bench]'")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)

    async def __aenter__(self) -> "Client":
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers, timeout=self._timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def model(self) -> str:
        """The first model that is served."""
        try:
            async with self._session.get(self.url + "/v1/models") as response:
                if response.status != 200:
                    raise ServerError(f"{self.url}/v1/models answers {response.status}: is it an OpenAI API?")
                return (await response.json(content_type=None))["data"][0]["id"]
        except aiohttp.ClientError as error:
            raise ServerError(f"{self.url} cannot be reached: {error}") from error
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ServerError(f"{self.url}/v1/models lists no model: give --model") from error

    async def usage(self, wire: Wire, prompt: str | list[int]) -> dict[str, Any]:
        """Ask for one token, not streamed, and return what the server counted."""
        async with self._session.post(self.url + wire.path, json=wire.body(prompt, 1, stream=False)) as response:
            text = await response.text()
            if response.status != 200:
                raise ServerError(f"{self.url}{wire.path} answers {response.status}: {_reason(text)}")
            return (await response.json(content_type=None)).get("usage") or {}

    async def stream(self, wire: Wire, prompt: str | list[int], answer: Answer, now: Callable[[], float]) -> None:
        """Send one request and note the time of every token in `answer`. No exception: what went wrong is in it."""
        reading = StreamReading()
        answer.sent_s = now()
        try:
            body = wire.body(prompt, answer.arrival.output_tokens)
            async with self._session.post(self.url + wire.path, json=body) as response:
                if response.status != 200:
                    reason = _reason(await response.text())
                    answer.refused = REFUSALS.get(response.status, "")
                    answer.failed = "" if answer.refused else f"{response.status}: {reason}"
                    return
                async for line in response.content:
                    if line.startswith(b"data:"):
                        reading.event(line[5:].strip().decode(), now())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            reading.error = f"{type(error).__name__}: {error}"
        reading.fill(answer)


def _reason(text: str) -> str:
    """The message of an error body, or its beginning."""
    try:
        return str(json.loads(text)["error"]["message"])[:200]
    except (KeyError, TypeError, ValueError):
        return text[:200]
