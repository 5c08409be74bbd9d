"""A workload written down: a trace, or arrivals and lengths drawn from distributions; one seed, one list of requests.

    Workload(trace="azure_2023_conv.jsonl", window="600:240", speed=1.2)
    Workload(arrivals="on-off:2,10,40,15,30", prompt_tokens="uniform:32,512", output_tokens="lognormal:4.6,0.8,8,512")

Every command takes it, as flags of the same names (`jaxserve.commands.workload_flags`).
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from jaxserve.core.errors import ConfigError
from jaxserve.core.settings import require
from jaxserve.sim.arrivals import Arrival, gamma, lognormal, on_off, poisson, uniform
from jaxserve.sim.sources import ClosedLoop, OpenLoop, Source
from jaxserve.sim.traces import read_trace, spread

ARRIVALS = {
    "poisson": "poisson:RATE",
    "gamma": "gamma:RATE,CV",
    "on-off": "on-off:RATE,SPIKE_RATE,PERIOD,FROM,TO",
    "closed": "closed:USERS,THINK_SECONDS",
    "saturation": "saturation",
}
LENGTHS = {
    "fixed": "fixed:TOKENS",
    "uniform": "uniform:LOW,HIGH",
    "lognormal": "lognormal:MU,SIGMA,LOW,HIGH",
    "file": "file:TRACE",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """With a `trace`, times and lengths are the trace's; without, they are drawn, `requests` of them."""

    trace: str | None = None
    window: str | None = None
    """FROM:SECONDS of the trace, shifted to 0."""
    speed: float = 1.0
    """Time of the trace runs so many times faster."""
    spread_stamps: bool = False
    """Strew requests that share a time stamp over the time to the next."""
    requests: int | None = None
    """The first so many; drawn ones: 1000."""
    arrivals: str | None = None
    """In place of the trace's times: see `ARRIVALS`. Without a trace: poisson:1."""
    prompt_tokens: str | None = None
    """See `LENGTHS`. Without a trace: uniform:32,512."""
    output_tokens: str | None = None
    """See `LENGTHS`. Without a trace: lognormal:4.6,0.8,8,512."""
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.speed > 0.0, "speed", self.speed, "a positive number")
        require(self.requests is None or self.requests > 0, "requests", self.requests, "a positive number")
        if self.trace is None:
            require(self.window is None, "window", self.window, "a trace beside it")
            require(not self.spread_stamps, "spread_stamps", True, "a trace beside it")
            require(self.speed == 1.0, "speed", self.speed, "a trace beside it, or another rate in arrivals")
        for text, known, name in (
            (self.arrivals, ARRIVALS, "arrivals"),
            (self.prompt_tokens, LENGTHS, "prompt_tokens"),
            (self.output_tokens, LENGTHS, "output_tokens"),
        ):
            if text is not None:
                _numbers(name, text, known)

    def source(self) -> Source:
        """Requests as they come; for `closed`, as the users' answers let them."""
        spec = self.arrivals or ""
        if not spec.startswith("closed"):
            return OpenLoop(self.list())
        users, think_s = _numbers("arrivals", spec, ARRIVALS)
        require(users >= 1.0 and users == int(users), "arrivals", spec, "a whole number of users, 1 or more")
        require(think_s >= 0.0, "arrivals", spec, "0 or more seconds to think")
        return ClosedLoop(self._bodies(), int(users), think_s)

    def list(self) -> Iterator[Arrival]:
        """Requests in order of time, one by one. A closed loop has no times of its own: `source` has it."""
        bodies = self._bodies()
        if self.arrivals is None and self.trace is not None:
            yield from bodies
            return
        name, numbers = _parts(self.arrivals or "poisson:1", "arrivals", ARRIVALS)
        times = _times(name, numbers, random.Random(f"{self.seed}/times"), self.arrivals)
        for body, at_s in zip(bodies, times, strict=False):
            yield replace(body, at_s=at_s)

    def describe(self) -> dict[str, Any]:
        """What differs from nothing said, for a report."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}

    def _bodies(self) -> Iterator[Arrival]:
        """Requests with the trace's times, or all at 0."""
        bodies = self._traced() if self.trace is not None else self._drawn()
        if self.trace is not None and (self.prompt_tokens or self.output_tokens):
            bodies = self._relengthened(bodies)
        return self._some(itertools.islice(bodies, self.requests if self.requests or self.trace else 1000))

    def _some(self, bodies: Iterator[Arrival]) -> Iterator[Arrival]:
        """Raises ConfigError if there is no request at all."""
        first = next(bodies, None)
        if first is None:
            require(self.window is None, "window", self.window, f"a stretch of {self.trace} in which requests come")
            raise ConfigError(f"{self.trace}: no requests: expected JSON, one object a line")
        return itertools.chain([first], bodies)

    def _traced(self) -> Iterator[Arrival]:
        assert self.trace is not None
        arrivals = read_trace(self.trace)
        if self.spread_stamps:
            arrivals = spread(arrivals, random.Random(f"{self.seed}/stamps"))
        if self.window is None and self.speed == 1.0:
            return arrivals
        begin, seconds = _window(self.window)
        return (
            replace(arrival, at_s=(arrival.at_s - begin) / self.speed)
            for arrival in itertools.takewhile(lambda a: a.at_s < begin + seconds, arrivals)
            if arrival.at_s >= begin
        )

    def _drawn(self) -> Iterator[Arrival]:
        prompt = self._length(self.prompt_tokens or "uniform:32,512", "prompt_tokens")
        output = self._length(self.output_tokens or "lognormal:4.6,0.8,8,512", "output_tokens")
        while True:
            yield Arrival(0.0, prompt(), output())

    def _relengthened(self, bodies: Iterator[Arrival]) -> Iterator[Arrival]:
        prompt = self._length(self.prompt_tokens, "prompt_tokens") if self.prompt_tokens else None
        output = self._length(self.output_tokens, "output_tokens") if self.output_tokens else None
        for body in bodies:
            yield replace(
                body,
                prompt_tokens=prompt() if prompt else body.prompt_tokens,
                output_tokens=output() if output else body.output_tokens,
                prefix_blocks=() if prompt else body.prefix_blocks,
            )

    def _length(self, spec: str, name: str) -> Callable[[], int]:
        """Draws of one kind of length. Two files that are one are drawn from together: a prompt keeps its output."""
        kind, numbers = _parts(spec, name, LENGTHS)
        tokens = numbers[2:] if kind == "lognormal" else numbers
        require(all(number == int(number) for number in tokens), name, spec, "whole numbers of tokens")
        same = self.prompt_tokens == self.output_tokens
        rng = random.Random(f"{self.seed}/{'both' if kind == 'file' and same else name}")
        match kind:
            case "fixed":
                require(numbers[0] >= 1, name, spec, "at least one token")
                return lambda: int(numbers[0])
            case "uniform":
                low, high = map(int, numbers)
                require(1 <= low <= high, name, spec, "LOW from 1 and HIGH from LOW on")
                return lambda: uniform(rng, low, high)
            case "lognormal":
                mu, sigma, low, high = numbers
                require(1 <= low <= high and sigma >= 0, name, spec, "SIGMA from 0, LOW from 1, HIGH from LOW on")
                return lambda: lognormal(rng, mu, sigma, int(low), int(high))
            case _:
                values = [getattr(arrival, name) for arrival in read_trace(spec.partition(":")[2])]
                require(bool(values), name, spec, "a trace with requests in it")
                return lambda: rng.choice(values)


def _times(name: str, numbers: list[float], rng: random.Random, spec: str | None) -> Iterator[float]:
    if name == "saturation":
        return itertools.repeat(0.0)
    require(name != "closed", "arrivals", spec, "an open loop here: " + ", ".join(list(ARRIVALS.values())[:3]))
    require(max(numbers[:2]) > 0 and min(numbers) >= 0, "arrivals", spec, "a rate above 0")
    match name:
        case "poisson":
            return poisson(rng, numbers[0])
        case "gamma":
            require(numbers[0] > 0 and numbers[1] >= 1e-3, "arrivals", spec, "a rate above 0, and a CV from 0.001 on")
            return gamma(rng, *numbers)
        case _:
            rate, spike, period, begin, end = numbers
            require(0 <= begin <= end <= period and period > 0, "arrivals", spec, "0 <= FROM <= TO <= PERIOD")
            ever = (spike > 0 and end > begin) or (rate > 0 and end - begin < period)
            require(ever, "arrivals", spec, "a rate above 0 where it counts: no request would ever come")
            return on_off(rng, rate, spike, period, begin, end)


def _parts(spec: str, name: str, known: dict[str, str]) -> tuple[str, list[float]]:
    return spec.partition(":")[0], _numbers(name, spec, known)


def _numbers(name: str, spec: str, known: dict[str, str]) -> list[float]:
    """The numbers behind the colon; ConfigError unless they are as many as the kind takes."""
    kind, _, rest = spec.partition(":")
    form = known.get(kind)
    if kind == "file" and form and rest:
        return []
    try:
        numbers = [float(part) for part in rest.split(",")] if rest else []
    except ValueError:
        numbers = [float("nan")]
    expected = len(form.partition(":")[2].split(",")) if form and ":" in form else 0
    if form is None or len(numbers) != expected or not all(map(math.isfinite, numbers)):
        raise ConfigError(f"{name} = {spec!r} cannot work: give {form or ' or '.join(known.values())}")
    return numbers


def _window(text: str | None) -> tuple[float, float]:
    if text is None:
        return 0.0, float("inf")
    begin, _, seconds = text.partition(":")
    try:
        found = float(begin), float(seconds)
    except ValueError:
        found = -1.0, -1.0
    require(found[0] >= 0 and found[1] > 0, "window", text, "FROM:SECONDS, for example 600:240")
    return found
