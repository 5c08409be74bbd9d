"""Adds up requests that have ended: percentiles, throughput, goodput, for each tenant and for all together.

    summary = Summary(Slo.parse("ttft<0.5,tpot<0.05"))
    summary.add(request)                       # a `Measured`, once each
    summary.all.ttft.percentile(99), summary.all.goodput, summary.tenants["chat"]

The memory does not grow with the number of requests.
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from jaxserve.metrics.distribution import Distribution
from jaxserve.metrics.latency import Measured, e2e_s, gaps_s, tpot_s, ttft_s
from jaxserve.metrics.slo import METRICS, Bound, Slo


class GroupSummary:
    """One tenant's requests, or everybody's. Latencies count the requests that ended well.

    `slo`: the objective, as shown; None: there is none, and no goodput.
    """

    def __init__(self, slo: str | None = None) -> None:
        self.slo = slo
        self.offered = 0
        self.completed = 0
        self.failed = 0
        self.refused: Counter[str] = Counter()
        """By reason: "queue_full", "rate_limit", "slo", "cannot_fit"."""
        self.judged = 0
        """Requests for which there was an objective; a tenant may have been promised nothing."""
        self.met = 0
        """Requests that met it."""
        self.prompt_tokens = 0
        """Of the requests that were taken; so are the next three."""
        self.cached_tokens = 0
        self.output_tokens = 0
        self.preemptions = 0
        self.first_arrival_s = math.inf
        self.last_completion_s = -math.inf
        self.ttft, self.tpot, self.itl, self.e2e, self.queue = (Distribution() for _ in METRICS)

    def add(self, request: Measured, met: bool | None) -> None:
        """`met`: it met its objective; None: it had none."""
        self.offered += 1
        self.judged += met is not None
        self.met += met or False
        self.first_arrival_s = min(self.first_arrival_s, request.arrival_s)
        if request.refused:
            self.refused[request.refused] += 1
            return
        times = request.token_s
        self.prompt_tokens += request.prompt_tokens
        self.cached_tokens += request.cached_tokens
        self.output_tokens += len(times)
        self.preemptions += request.preemptions
        if times:
            self.last_completion_s = max(self.last_completion_s, times[-1])
        if request.failed or not times:
            self.failed += 1
            return
        self.completed += 1
        self._add_times(request)

    def _add_times(self, request: Measured) -> None:
        arrival, times = request.arrival_s, request.token_s
        self.ttft.add(ttft_s(arrival, times))
        self.e2e.add(e2e_s(arrival, times))
        if (tpot := tpot_s(times)) is not None:
            self.tpot.add(tpot)
            self.itl.extend(gaps_s(times))
        if request.first_scheduled_s is not None:
            self.queue.add(request.first_scheduled_s - arrival)

    def distribution(self, metric: str) -> Distribution:
        """By its short name: "ttft", "tpot", "itl", "e2e", "queue"."""
        return getattr(self, metric)

    def value(self, bound: Bound) -> float:
        """What was measured of what `bound` bounds; nan if nothing was."""
        found = self.distribution(bound.metric)
        return found.mean if bound.percent is None else found.percentile(bound.percent)

    @property
    def duration_s(self) -> float:
        """First arrival to last completion."""
        return max(self.last_completion_s - self.first_arrival_s, 0.0)

    @property
    def throughput(self) -> float:
        """Output tokens a second, from the first arrival to the last completion."""
        return self.output_tokens / self.duration_s if self.duration_s else 0.0

    @property
    def goodput(self) -> float | None:
        """Share of the offered requests with an objective that met it; refused and failed ones did not. None: none."""
        return self.met / self.judged if self.judged else None

    @property
    def goodput_per_s(self) -> float | None:
        """Requests a second that met the objective."""
        return self.met / self.duration_s if self.slo is not None and self.duration_s else None

    def to_json(self) -> dict[str, Any]:
        return {
            "requests": {
                "offered": self.offered,
                "completed": self.completed,
                "failed": self.failed,
                "refused": dict(self.refused),
            },
            "tokens": {"prompt": self.prompt_tokens, "cached": self.cached_tokens, "output": self.output_tokens},
            "preemptions": self.preemptions,
            "duration_s": self.duration_s,
            "throughput_tokens_per_s": self.throughput,
            "requests_per_s": self.completed / self.duration_s if self.duration_s else 0.0,
            "slo": self.slo,
            "goodput": self.goodput,
            "goodput_requests_per_s": self.goodput_per_s,
            **{metric + "_s": self.distribution(metric).to_json() for metric in METRICS},
        }


class Summary:
    """`slos`: objectives of single tenants, in place of `slo`."""

    def __init__(self, slo: Slo | None = None, slos: Mapping[str, Slo] | None = None) -> None:
        self._slo, self._slos = slo, slos or {}
        shown = "each tenant's own" if self._slos else slo and str(slo)
        self.all = GroupSummary(shown)
        self.tenants: dict[str, GroupSummary] = {}

    def add(self, request: Measured) -> None:
        slo = self._slos.get(request.tenant, self._slo)
        tenant = self.tenants.get(request.tenant)
        if tenant is None:
            tenant = self.tenants[request.tenant] = GroupSummary(slo and str(slo))
        met = None if slo is None else slo.met(request)
        tenant.add(request, met)
        self.all.add(request, met)

    def to_json(self) -> dict[str, Any]:
        return {"all": self.all.to_json(), "tenants": {name: group.to_json() for name, group in self.tenants.items()}}
