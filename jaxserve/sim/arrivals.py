"""Seeded lists of requests: when each comes, how long its prompt is, how many tokens it asks for.

Every generator takes a `random.Random`; equal seeds give equal lists on every machine. Requests read from a trace and
requests made up here are the same thing: an `Arrival`.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from jaxserve.core.sampling import SamplingParams
from jaxserve.core.sequence import Request


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request to come. The fields from `priority` on are the request's own; None takes the tenant's setting."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    tenant: str = "default"
    kind: str = ""
    """A label for reports: "short", "long"."""
    prefix_blocks: tuple[int, ...] = ()
    """Ids of the prompt's leading blocks: equal leading ids are equal tokens, shared by the prefix cache."""
    block_tokens: int = 512
    """Tokens of such a block."""
    n: int = 1
    """Completions of the prompt; each has `output_tokens`."""
    cache_salt: str = ""
    """Requests share prefix blocks only with requests of an equal salt."""
    abort_s: float | None = None
    """Seconds after `at_s` at which the caller closes the stream; None: it reads to the end."""
    abort_tokens: int | None = None
    """Output tokens of a completion after which the caller closes the stream."""
    priority: int | None = None
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    session_id: str | None = None
    """The session that it belongs to."""

    @property
    def aborts(self) -> bool:
        """Its caller closes the stream early."""
        return self.abort_s is not None or self.abort_tokens is not None

    def request(self, name: str, prompt: tuple[int, ...], start_s: float = 0.0) -> Request:
        params = SamplingParams(max_tokens=self.output_tokens, n=self.n, temperature=0.0, ignore_eos=True, seed=0)
        return Request(
            id=name, prompt=prompt, params=params, arrival_s=start_s + self.at_s, tenant=self.tenant,
            cache_salt=self.cache_salt, priority=self.priority, ttft_slo_s=self.ttft_slo_s, tpot_slo_s=self.tpot_slo_s,
            session_id=self.session_id,
        )  # fmt: skip


# --- when -----------------------------------------------------------------------------------------------------


def poisson(rng: random.Random, rate: float, start_s: float = 0.0) -> Iterator[float]:
    """Times of a Poisson process, `rate` a second, without end."""
    at = start_s
    while True:
        at += rng.expovariate(rate)
        yield at


def gamma(rng: random.Random, rate: float, cv: float, start_s: float = 0.0) -> Iterator[float]:
    """Independent gamma-distributed gaps with mean 1 / `rate` and coefficient of variation `cv`: above 1 is bursty."""
    at, shape = start_s, 1.0 / cv**2
    while True:
        at += rng.gammavariate(shape, 1.0 / (rate * shape))
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
    return clipped(math.exp(min(rng.gauss(mu, sigma), _LARGEST)), low, high)


_LARGEST = 700.0
"""exp of more is no float."""


def clipped(value: float, low: int, high: int) -> int:
    return min(max(round(value), low), high)
