"""The last steps, requests and first tokens, kept one by one: what the dashboard draws and `jaxserve doctor` reads.

Beside them, by second: what ran, was refused and ended, and each tenant's service (`metrics.starvation`). All rings are
bounded; a reader asks for what is new since a number that it has seen.
"""

from collections import deque
from dataclasses import dataclass

from jaxserve.core.plan import NO_BUCKET
from jaxserve.core.sequence import FinishReason, Sequence
from jaxserve.core.step_record import StepRecord
from jaxserve.metrics.by_second import SECONDS, BySecond
from jaxserve.metrics.starvation import ServiceBySecond

STEPS = 512
REQUESTS = 512
POINTS = 2048
LATE, LATE_S = 4.0, 0.05
"""A step that took so many times what was predicted, and so many seconds more, was late."""


@dataclass(frozen=True, slots=True)
class StepFact:
    """One step that ran."""

    number: int
    ended_s: float
    bucket: str
    decodes: int
    prefill_tokens: int
    padding: int
    seconds: float
    predicted_s: float
    """0: nothing was predicted."""
    admitted: int
    preempted: int
    moves: int


@dataclass(frozen=True, slots=True)
class RequestFact:
    """One sequence that ended, and where its time went: queue + prefill + decode = its age; stalls lie within them."""

    number: int
    id: str
    tenant: str
    ended_s: float
    reason: str
    queue_s: float
    """Until its first step, what came before the scheduler included."""
    prefill_s: float
    decode_s: float
    stalled_s: float
    """From its preemption until it runs again."""
    ttft_s: float | None
    tpot_s: float | None
    ttft_slo_s: float | None
    tpot_slo_s: float | None
    """The objectives that the scheduler worked to."""
    asked_ttft_slo_s: float | None
    asked_tpot_slo_s: float | None
    """Those that the request itself brought."""
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    preemptions: int
    priority: int
    """The class that it had: smaller goes first."""
    asked_priority: int | None
    """The class that the request itself brought."""


@dataclass(frozen=True, slots=True)
class Point:
    """A latency that became known. `kind`: ttft or tpot."""

    number: int
    at_s: float
    tenant: str
    kind: str
    seconds: float
    slo_s: float | None


@dataclass(slots=True)
class Second:
    """What ran in one second of the engine's clock; seconds without anything have none."""

    at_s: int
    output_tokens: int = 0
    prompt_tokens: int = 0
    steps: int = 0
    decode_rows: int = 0
    padding: int = 0
    running: int = 0
    """The most sequences at once; likewise the next."""
    waiting: int = 0
    kv_usage: float = 0.0
    """The largest share of the KV blocks that sequences held."""
    refused: int = 0
    predicted_steps: int = 0
    """Those that the cost model had something to say of; the next four are of these."""
    measured_s: float = 0.0
    predicted_s: float = 0.0
    late_steps: int = 0
    late_s: float = 0.0
    """What the late ones took beyond what was predicted."""


class History:
    """One writer: the engine's thread."""

    def __init__(self) -> None:
        self.steps: deque[StepFact] = deque(maxlen=STEPS)
        self.requests: deque[RequestFact] = deque(maxlen=REQUESTS)
        self.points: deque[Point] = deque(maxlen=POINTS)
        self.seconds: deque[Second] = deque(maxlen=SECONDS)
        self.service = ServiceBySecond()
        self.refused = BySecond()
        """Requests by (tenant, reason)."""
        self.ended = BySecond()
        """Sequences by (tenant,)."""
        self._requests = self._points = 0

    def add_step(self, record: StepRecord) -> None:
        step = record.step
        assert step is not None
        plan = step.plan
        if plan.bucket is NO_BUCKET:
            return
        decodes, tokens = len(plan.decodes), plan.num_tokens
        self.steps.append(
            StepFact(
                plan.step,
                record.now,
                str(plan.bucket),
                decodes,
                tokens - decodes,
                plan.bucket.tokens - tokens,
                record.seconds,
                record.predicted_s,
                len(plan.admitted),
                len(plan.preempted),
                len(plan.moves),
            )
        )
        second = self._second(record.now)
        second.steps += 1
        second.decode_rows += decodes
        second.prompt_tokens += tokens - decodes
        second.padding += plan.bucket.tokens - tokens
        occupancy = step.occupancy
        second.running = max(second.running, occupancy.running)
        second.waiting = max(second.waiting, sum(occupancy.waiting.values()))
        second.kv_usage = max(second.kv_usage, occupancy.kv_usage)
        self.service.add_step(step, record.now)
        if record.predicted_s > 0.0:
            self._predicted(second, record.seconds, record.predicted_s)

    def add_tokens(self, tenant: str, count: int, now: float) -> None:
        self._second(now).output_tokens += count
        self.service.add_tokens(tenant, count, now)

    def add_refusal(self, tenant: str, reason: str, now: float) -> None:
        self._second(now).refused += 1
        self.refused.add((tenant, reason), now)

    def add_point(self, sequence: Sequence, kind: str, seconds: float, slo_s: float | None, now: float) -> None:
        self._points += 1
        self.points.append(Point(self._points, now, sequence.tenant, kind, seconds, slo_s))

    def add_request(
        self, sequence: Sequence, reason: FinishReason, received_s: float, end_s: float, stalled_s: float, now: float
    ) -> None:
        self._requests += 1
        self.ended.add((sequence.tenant,), now)
        start, first, outputs = sequence.first_scheduled_s, sequence.first_token_s, sequence.num_outputs
        self.requests.append(
            RequestFact(
                number=self._requests,
                id=sequence.id,
                tenant=sequence.tenant,
                ended_s=now,
                reason=reason.value,
                queue_s=(end_s if start is None else start) - received_s,
                prefill_s=0.0 if start is None else (end_s if first is None else first) - start,
                decode_s=0.0 if first is None else end_s - first,
                stalled_s=stalled_s,
                ttft_s=None if first is None else first - received_s,
                tpot_s=None if first is None or outputs < 2 else (end_s - first) / (outputs - 1),
                ttft_slo_s=sequence.ttft_slo_s,
                tpot_slo_s=sequence.tpot_slo_s,
                asked_ttft_slo_s=sequence.request.ttft_slo_s,
                asked_tpot_slo_s=sequence.request.tpot_slo_s,
                prompt_tokens=sequence.num_prompt,
                cached_tokens=sequence.num_cached,
                output_tokens=outputs,
                preemptions=sequence.preemptions,
                priority=sequence.priority,
                asked_priority=sequence.request.priority,
            )
        )

    def latencies(self, kind: str, since_s: float) -> dict[str, list[Point]]:
        """Points of one kind that became known after a time, by tenant."""
        found: dict[str, list[Point]] = {}
        for point in reversed(self.points):
            if point.at_s < since_s:
                break
            if point.kind == kind:
                found.setdefault(point.tenant, []).append(point)
        return found

    def _predicted(self, second: Second, seconds: float, predicted_s: float) -> None:
        second.predicted_steps += 1
        second.measured_s += seconds
        second.predicted_s += predicted_s
        if seconds > LATE * predicted_s and seconds - predicted_s > LATE_S:
            second.late_steps += 1
            second.late_s += seconds - predicted_s

    def _second(self, now: float) -> Second:
        at = int(now)
        if not self.seconds or self.seconds[-1].at_s != at:
            self.seconds.append(Second(at))
        return self.seconds[-1]
