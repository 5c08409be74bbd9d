"""Seeded lists of requests: when each comes, how long its prompt is, how many tokens it asks for.

Every generator takes a `random.Random`; equal seeds give equal lists on every machine. Requests read from a trace and
requests made up here are the same thing: an `Arrival`.
"""

import json
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from jaxserve.core.errors import ConfigError
from jaxserve.core.sampling import SamplingParams
from jaxserve.core.sequence import Request


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request to come."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    tenant: str = "default"
    kind: str = ""
    """A label for reports: "short", "long"."""

    def request(self, name: str, prompt: tuple[int, ...], start_s: float = 0.0) -> Request:
        params = SamplingParams(max_tokens=self.output_tokens, temperature=0.0, ignore_eos=True, seed=0)
        return Request(id=name, prompt=prompt, params=params, arrival_s=start_s + self.at_s, tenant=self.tenant)


# --- when -----------------------------------------------------------------------------------------------------


def poisson(rng: random.Random, rate: float, start_s: float = 0.0) -> Iterator[float]:
    """Times of a Poisson process, `rate` a second, without end."""
    at = start_s
    while True:
        at += rng.expovariate(rate)
        yield at


def on_off(
    rng: random.Random, rate: float, spike_rate: float, period_s: float, spike_from_s: float, spike_to_s: float
) -> Iterator[float]:
    """A Poisson process whose rate is `spike_rate` in seconds `spike_from_s` to `spike_to_s` of every period.

    Thinning (Lewis and Shedler 1979): candidates at the highest rate, each kept with the share of the rate at its time.
    """
    highest = max(rate, spike_rate)
    for at in poisson(rng, highest):
        here = spike_rate if spike_from_s <= at % period_s < spike_to_s else rate
        if rng.random() * highest < here:
            yield at


# --- how long -------------------------------------------------------------------------------------------------


def uniform(rng: random.Random, low: int, high: int) -> int:
    """A whole number from `low` to `high`, both included."""
    return rng.randint(low, high)


def lognormal(rng: random.Random, mu: float, sigma: float, low: int, high: int) -> int:
    """exp of a normal, rounded and clipped."""
    return clipped(math.exp(rng.gauss(mu, sigma)), low, high)


def clipped(value: float, low: int, high: int) -> int:
    return min(max(round(value), low), high)


# --- traces ---------------------------------------------------------------------------------------------------


def read_trace(path: str | Path) -> Iterator[Arrival]:
    """A JSONL trace, line by line: `arrival_s`, `prompt_tokens`, `output_tokens`, and `tenant` if there is one.

    Raises:
      ConfigError: with the line, the field and what was expected.
    """
    try:
        with open(path) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _arrival(f"{path}:{number}", line)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error


def _arrival(where: str, line: str) -> Arrival:
    try:
        fields: object = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{where}: expected an object with arrival_s, prompt_tokens and output_tokens")
    fields = cast(dict[str, object], fields)
    at = _number(where, fields, "arrival_s", 0)
    prompt, output = (_number(where, fields, name, 1) for name in ("prompt_tokens", "output_tokens"))
    return Arrival(at, int(prompt), int(output), str(fields.get("tenant", "default")))


def _number(where: str, fields: dict[str, object], name: str, least: int) -> float:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
        raise ConfigError(f"{where}: {name} = {value!r}: expected a number of at least {least}")
    return value


def window(arrivals: Iterable[Arrival], from_s: float, seconds: float, compression: float = 1.0) -> list[Arrival]:
    """The arrivals of a stretch of a trace, from 0 on, with time run `compression` times faster."""
    return [
        Arrival((a.at_s - from_s) / compression, a.prompt_tokens, a.output_tokens, a.tenant, a.kind)
        for a in arrivals
        if from_s <= a.at_s < from_s + seconds
    ]


def merged(*lists: Iterable[Arrival]) -> list[Arrival]:
    """Several lists as one, in order of time."""
    return sorted((a for arrivals in lists for a in arrivals), key=lambda a: a.at_s)
