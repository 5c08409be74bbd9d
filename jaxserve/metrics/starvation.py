"""What each tenant got of the machine while it had requests waiting, second by second, and which one was starved.

    second     tenant a           tenant b
    12         served 900         served 0, waited in every step
    13         served 850         served 0, waited in every step       five of these: b is starved

Service is prompt tokens and output tokens, each times its weight of the ordering `fair`. What is due to a tenant is its
own weight over the weights of all tenants that were served or waited in that span: a share from 0 to 1. A tenant that
waits in every step of a span and gets less than half of what is due to it is starved in that span.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from jaxserve.core.step_record import ScheduledStep
from jaxserve.metrics.by_second import SECONDS

SPAN_S = 5
"""Seconds of waiting that are judged together: in less a single long prompt decides."""
SPAN_STEPS = 20
PAUSE_S = 30
"""Without a step for so long the engine was idle, and no span goes across."""
STARVED = 0.5
"""Of what is due."""


@dataclass(frozen=True, slots=True)
class Starved:
    """One tenant's starvation in the seconds that were looked at."""

    seconds: int
    """How long it was starved, all spans together."""
    ended_s: int
    """The last second of these."""
    got: float
    """Share of the service in these seconds."""
    due: float
    """Share that its weight gives it."""
    most: str
    """The tenant that got the most in these seconds."""


@dataclass(slots=True)
class _Tokens:
    prompt: int = 0
    output: int = 0


@dataclass(slots=True)
class _Second:
    at_s: int
    steps: int = 0
    tokens: dict[str, _Tokens] = field(default_factory=dict[str, _Tokens])
    waited: dict[str, int] = field(default_factory=dict[str, int])
    """Steps in which a tenant had sequences that waited."""


@dataclass(slots=True)
class _Span:
    """Seconds `first` to `last` of those that are looked at, by their place."""

    first: int
    last: int
    service: dict[str, float]
    total: float
    weights: float
    """Of all tenants that were served or waited, together."""


class ServiceBySecond:
    """One writer: the engine's thread."""

    def __init__(self) -> None:
        self._seconds: deque[_Second] = deque(maxlen=SECONDS)

    def add_step(self, step: ScheduledStep, now: float) -> None:
        second = self._second(now)
        second.steps += 1
        for tenant in step.occupancy.waiting:
            second.waited[tenant] = second.waited.get(tenant, 0) + 1
        for sequence, row in zip(step.prefills, step.plan.prefills, strict=True):
            second.tokens.setdefault(sequence.tenant, _Tokens()).prompt += row.length

    def add_tokens(self, tenant: str, count: int, now: float) -> None:
        """Output tokens."""
        self._second(now).tokens.setdefault(tenant, _Tokens()).output += count

    def starved(
        self, weights: Mapping[str, float], input_weight: float, output_weight: float, begin_s: float
    ) -> dict[str, Starved]:
        """Tenants that were starved after a time. `weights`: of every tenant."""
        seconds = [second for second in self._seconds if second.at_s >= int(begin_s)]
        waiting = {tenant for second in seconds for tenant, steps in second.waited.items() if steps >= second.steps}
        if not waiting:
            return {}
        service = [
            {name: input_weight * t.prompt + output_weight * t.output for name, t in second.tokens.items()}
            for second in seconds
        ]
        spans = list(_spans(seconds, service, weights))
        found: dict[str, Starved] = {}
        for tenant in sorted(waiting):
            marked = _marked(tenant, seconds, spans, weights)
            if marked:
                found[tenant] = _summed(tenant, sorted(marked), seconds, service, weights)
        return found

    def _second(self, now: float) -> _Second:
        at_s = int(now)
        if not self._seconds or self._seconds[-1].at_s != at_s:
            self._seconds.append(_Second(at_s))
        return self._seconds[-1]


def _spans(seconds: list[_Second], service: list[dict[str, float]], weights: Mapping[str, float]) -> Iterable[_Span]:
    """For every second the shortest span that ends with it and is long enough to judge by."""
    first, steps = 0, 0
    for last, second in enumerate(seconds):
        if last and second.at_s - seconds[last - 1].at_s > PAUSE_S:
            first, steps = last, 0
        steps += second.steps
        while first < last:
            left = steps - seconds[first].steps
            if second.at_s - seconds[first + 1].at_s + 1 < SPAN_S or left < SPAN_STEPS:
                break
            steps, first = left, first + 1
        if second.at_s - seconds[first].at_s + 1 >= SPAN_S and steps >= SPAN_STEPS:
            found: dict[str, float] = {}
            for at in range(first, last + 1):
                found |= dict.fromkeys(seconds[at].waited.keys() - found.keys(), 0.0)
                for tenant, served in service[at].items():
                    found[tenant] = found.get(tenant, 0.0) + served
            yield _Span(first, last, found, sum(found.values()), sum(weights[tenant] for tenant in found))


def _marked(tenant: str, seconds: list[_Second], spans: list[_Span], weights: Mapping[str, float]) -> set[int]:
    """Places of the seconds that belong to a span in which the tenant was starved."""
    found: set[int] = set()
    since = 0  # from this place on it waited in every step
    at = 0
    for span in spans:
        while at <= span.last:
            if seconds[at].waited.get(tenant, 0) < seconds[at].steps:
                since = at + 1
            at += 1
        if span.first < since or not span.total:
            continue
        if span.service[tenant] < STARVED * span.total * weights[tenant] / span.weights:
            found.update(range(span.first, span.last + 1))
    return found


def _summed(
    tenant: str,
    marked: list[int],
    seconds: list[_Second],
    service: list[dict[str, float]],
    weights: Mapping[str, float],
) -> Starved:
    total: dict[str, float] = {}
    for at in marked:
        for name, served in service[at].items():
            total[name] = total.get(name, 0.0) + served
    tenants = total.keys() | {name for at in marked for name in seconds[at].waited}
    gaps = (seconds[b].at_s - seconds[a].at_s for a, b in pairwise(marked) if b == a + 1)
    alone = sum(b != a + 1 for a, b in pairwise(marked))
    return Starved(
        seconds=1 + sum(gaps) + alone,
        ended_s=seconds[marked[-1]].at_s,
        got=total.get(tenant, 0.0) / sum(total.values()),
        due=weights[tenant] / sum(weights[name] for name in tenants),
        most=max(total, key=lambda name: total[name]),
    )
