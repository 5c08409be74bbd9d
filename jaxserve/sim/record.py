"""Records of a running engine: what came, what each step decided, how long it took. JSON, one object a line.

    {"jaxserve_record": 1, "config": {...}, "num_blocks": 513, ...}                 the first line
    {"request": 7, "arrival_s": 1.2, "queued_s": 1.21, "prompt_tokens": 300, ...}   when it is first scheduled
    {"step": 41, "planned_s": 1.22, "committed_s": 1.25, "prefills": [...], ...}    when it is committed
    {"end": [7, 0], "output_tokens": 25, "reason": "stop", "blocks": [...]}         when it ends

Nothing in it says what was asked or answered. `blocks` are ids of the sequence's full blocks, keyed hashes of a chain
over its tokens: equal ids mean equal beginnings, which is all that the prefix cache looks at, and the key is thrown
away. `tokens=True` adds token ids.

Here is what a record says once it is read. `sim.recorder` writes one, `sim.record_reader` reads it, `sim.replay` runs
it again; every command that takes a trace takes a record.
"""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from jaxserve.core.config import EngineConfig
from jaxserve.core.plan import Bucket
from jaxserve.core.tenants import Tenants
from jaxserve.costs.fitted import FittedCost, fit_steps
from jaxserve.costs.model import CostModel, StepFeatures
from jaxserve.sim.arrivals import Arrival

VERSION = 1


@dataclass(slots=True)
class RecordedSequence:
    output_tokens: int
    reason: str
    ended_s: float
    blocks: tuple[int, ...]
    first_scheduled_s: float | None = None
    first_token_s: float | None = None


@dataclass(slots=True)
class RecordedRequest:
    number: int
    arrival_s: float
    queued_s: float
    prompt_tokens: int
    max_output_tokens: int | None
    tenant: str = "default"
    n: int = 1
    priority: int | None = None
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    owner: str | None = None
    refused: str = ""
    order: float = math.inf
    """The scheduler's arrival number."""
    prompt: list[int] | None = None
    ends: dict[int, RecordedSequence] = field(default_factory=dict[int, RecordedSequence])
    """By the sequence's index; one that had not ended when the record did has none."""


@dataclass(slots=True)
class RecordedStep:
    step: int
    planned_s: float
    committed_s: float
    seconds: float
    bucket: Bucket
    decodes: int
    decode_context: int
    prefills: list[list[int]]
    """[request, sequence's index, start, length] each."""
    decision: int
    decode_longest: int = 0
    """Longest context of a decode row."""

    @property
    def features(self) -> StepFeatures:
        tokens, pairs, longest = 0, 0.0, 0
        for _, _, start, length in self.prefills:
            tokens += length
            pairs += length * (start + 0.5 * length)
            longest = max(longest, start + length)
        return StepFeatures(
            tokens, pairs, len(self.prefills), self.decodes, self.decode_context, self.bucket, self.decode_longest,
            longest,
        )  # fmt: skip


@dataclass(slots=True)
class Record:
    config: EngineConfig
    num_blocks: int
    max_model_len: int
    tenants: Tenants
    cost: CostModel | None
    """What the engine's cost model knew when the record began."""
    machine: dict[str, Any]
    requests: list[RecordedRequest] = field(default_factory=list[RecordedRequest])
    """In the order in which the engine was given them."""
    steps: list[RecordedStep] = field(default_factory=list[RecordedStep])

    def arrivals(self) -> list[Arrival]:
        """The requests as a trace. Whoever was refused, or had not ended, is taken to want the median output."""
        ended = [end.output_tokens for request in self.requests for end in request.ends.values()]
        usual = int(statistics.median(ended)) if ended else 16
        arrivals: list[Arrival] = []
        for request in self.requests:
            for index in range(request.n):
                end = request.ends.get(index)
                limit = request.max_output_tokens or usual
                output = max(end.output_tokens if end else min(usual, limit), 1)
                full = request.prompt_tokens // self.config.cache.block_size
                blocks = end.blocks[:full] if end else ()
                arrivals.append(
                    Arrival(
                        max(request.arrival_s, 0.0), request.prompt_tokens, output, request.tenant,
                        prefix_blocks=blocks, block_tokens=self.config.cache.block_size, priority=request.priority,
                        ttft_slo_s=request.ttft_slo_s, tpot_slo_s=request.tpot_slo_s,
                    )
                )  # fmt: skip
        return sorted(arrivals, key=lambda arrival: arrival.at_s)

    def fitted(self, steps: Iterable[RecordedStep] | None = None) -> FittedCost:
        """A cost model of the recorded step times, each with equal weight."""
        chosen = self.steps if steps is None else list(steps)
        samples = [(s.features, s.seconds) for s in chosen if s.seconds > 0.0 and s.features.rows]
        return fit_steps(samples, f"measured: fitted to {len(samples)} recorded steps")
