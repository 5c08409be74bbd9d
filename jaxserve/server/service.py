"""What the routes need of an engine, whoever made it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from jaxserve.core.sampling import SamplingParams
from jaxserve.core.sequence import Request
from jaxserve.engine.loop import EngineLoop

MakeRequest = Callable[[str | list[int], SamplingParams, str, str], Request]


@dataclass(frozen=True, slots=True)
class Service:
    """`make_request`: (prompt, params, request id, cache salt) -> an engine request; it encodes text."""

    loop: EngineLoop
    make_request: MakeRequest
    model_name: str
    max_body_bytes: int
    created: int = field(default_factory=lambda: int(time.time()))
