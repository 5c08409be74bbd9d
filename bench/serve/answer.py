"""What became of a request that was sent over HTTP: made from a stream of events, measured as in the simulator.

`Answer` is a `jaxserve.metrics.latency.Measured`: the same definitions, whoever observed the request.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from jaxserve.sim.arrivals import Arrival


@dataclass(slots=True)
class Answer:
    """Times in seconds since the load began. A request arrives when it is due, even if it is sent late."""

    number: int
    arrival: Arrival
    sent_s: float = 0.0
    token_s: list[float] = field(default_factory=list[float])
    prompt_tokens: int = 0
    """As the server counted them, where it says so; else as planned."""
    cached_tokens: int = 0
    chunks: int = 0
    """Events that brought output: fewer than tokens if the server puts several into one."""
    refused: str = ""
    failed: str = ""
    first_scheduled_s: float | None = None
    preemptions: int = 0

    @property
    def arrival_s(self) -> float:
        return self.arrival.at_s

    @property
    def tenant(self) -> str:
        return self.arrival.tenant


class StreamReading:
    """Turns the data of server-sent events into token times.

    The tokens are those that the usage at the end counts. If they came in fewer chunks, they are laid evenly over the
    chunks, and those of one chunk came at one moment; chunks beyond the tokens (an end without text) are none.
    Without usage every chunk is a token.
    """

    def __init__(self) -> None:
        self.times: list[float] = []
        self.usage: dict[str, Any] = {}
        self.error = ""
        self.done = False

    def event(self, data: str, now: float) -> None:
        """The text behind `data: ` of one event."""
        if data == "[DONE]":
            self.done = True
            return
        body = json.loads(data)
        if error := body.get("error"):
            self.error = str(error.get("message", error) if isinstance(error, dict) else error)
        if usage := body.get("usage"):
            self.usage = usage
        for choice in body.get("choices") or ():
            if _brings_output(choice):
                self.times.append(now)

    def fill(self, answer: Answer) -> None:
        """Write what the stream said into `answer`."""
        count = self.usage.get("completion_tokens", len(self.times))
        chunks = self.times[:count]
        answer.chunks = len(chunks)
        answer.token_s = [chunks[i * len(chunks) // count] for i in range(count)] if chunks else []
        if len(chunks) > 1:
            answer.token_s[-1] = chunks[-1]
        answer.prompt_tokens = self.usage.get("prompt_tokens", answer.arrival.prompt_tokens)
        details = self.usage.get("prompt_tokens_details") or {}
        answer.cached_tokens = details.get("cached_tokens") or 0
        if self.error:
            answer.failed = self.error
        elif not answer.token_s:
            answer.failed = "no output"


def _brings_output(choice: dict[str, Any]) -> bool:
    """A completion's chunk is output even if its text is empty, since a token may be half a character; a chat's first
    chunk may only name the role."""
    if "text" in choice:
        return True
    delta = choice.get("delta") or {}
    spoken = any(delta.get(name) for name in ("content", "reasoning", "reasoning_content", "tool_calls"))
    return spoken or ("content" in delta and delta["content"] is not None and "role" not in delta)
