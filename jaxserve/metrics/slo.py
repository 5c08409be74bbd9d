"""Service level objectives, in two forms that are written alike.

    "ttft<0.5,tpot<0.05"              `Slo`: what one request must meet; goodput counts those that do
    "ttft_p99<0.5,tpot_p99<0.05"      `Bound`s: what a whole run must meet, at a percentile

Seconds throughout, unless a term says `ms`: "ttft<500ms" is "ttft<0.5". `Bound.parse_all` reads both: a name without a
percentile bounds every request (`max`).
"""

import re
from dataclasses import dataclass

from jaxserve.core.errors import ConfigError
from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.tenants import Tenants
from jaxserve.metrics.latency import Measured, e2e_s, gaps_s, tpot_s, ttft_s

METRICS = ("ttft", "tpot", "itl", "e2e", "queue")
_TERM = re.compile(r"\s*([a-z0-9]+?)(?:_p(\d+(?:\.\d+)?)|_(max|mean))?\s*<=?\s*([0-9.eE+-]+)\s*(m?s)?\s*")
_LONG_S = {"ttft": 60.0, "queue": 60.0, "tpot": 5.0, "itl": 5.0}
"""Above so many seconds a number without a unit was probably meant as milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Limits of one request, None: no limit. `itl_s` bounds its longest gap."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    itl_s: float | None = None
    e2e_s: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Slo":
        """Raises ConfigError for what is no objective of a single request."""
        limits: dict[str, float] = {}
        for bound in Bound.parse_all(text):
            if bound.percent != 100.0 or bound.metric == "queue":
                raise ConfigError(f"slo = {text!r}: one request has no {bound}: write for example ttft<0.5,tpot<0.05")
            if bound.metric + "_s" in limits:
                raise ConfigError(f"slo = {text!r}: {bound.metric} has two limits: give one")
            limits[bound.metric + "_s"] = bound.limit
        if not limits:
            raise ConfigError(f"slo = {text!r}: no objective: write for example ttft<0.5,tpot<0.05")
        return cls(**limits)

    @classmethod
    def asked(cls, text: str | None, section: SchedulerConfig) -> "Slo | None":
        """What a flag says; without one the objectives of the settings, if there are any. Raises ConfigError."""
        if text is not None:
            return cls.parse(text)
        if section.ttft_slo_s is None and section.tpot_slo_s is None:
            return None
        return cls(ttft_s=section.ttft_slo_s, tpot_s=section.tpot_slo_s)

    def met(self, request: Measured) -> bool:
        """A request that was refused, failed or had no token meets nothing."""
        times = request.token_s
        if request.refused or request.failed or not times:
            return False
        if self.ttft_s is not None and ttft_s(request.arrival_s, times) > self.ttft_s:
            return False
        if self.e2e_s is not None and e2e_s(request.arrival_s, times) > self.e2e_s:
            return False
        if self.tpot_s is not None and (tpot_s(times) or 0.0) > self.tpot_s:
            return False
        return self.itl_s is None or max(gaps_s(times), default=0.0) <= self.itl_s

    def __str__(self) -> str:
        limits = {name: getattr(self, name + "_s") for name in ("ttft", "tpot", "itl", "e2e")}
        return ",".join(f"{name}<{limit:g}" for name, limit in limits.items() if limit is not None) or "none"


@dataclass(frozen=True, slots=True)
class Bound:
    """A percentile of a metric that a run may not exceed; `percent` 100 is the maximum, None the mean."""

    metric: str
    percent: float | None
    limit: float

    @classmethod
    def parse_all(cls, text: str) -> tuple["Bound", ...]:
        """Raises ConfigError with what is accepted."""
        return tuple(cls._parse(term, text) for term in text.split(",") if term.strip())

    @classmethod
    def _parse(cls, term: str, text: str) -> "Bound":
        match = _TERM.fullmatch(term)
        try:
            metric, percent, word, number, unit = match.groups() if match else ("", None, None, "", None)
            limit = float(number) / (1000.0 if unit == "ms" else 1.0)
            bound = cls(metric, None if word == "mean" else float(percent or 100.0), limit)
        except ValueError:
            bound, unit = cls("", None, 0.0), None
        if bound.metric not in METRICS or not 0.0 < (bound.percent or 50.0) <= 100.0 or bound.limit <= 0.0:
            raise ConfigError(
                f"slo = {text!r}: {term.strip()!r} is no objective: give METRIC_pNN<SECONDS or METRIC<SECONDS, "
                f"separated by commas; metrics: {', '.join(METRICS)}"
            )
        if unit is None and bound.limit > _LONG_S.get(bound.metric, float("inf")):
            meant = f"{bound.limit:g}ms, or {bound.limit:g}s"
            raise ConfigError(f"slo = {text!r}: {bound} is {bound.limit:g} seconds: write {meant} if it is meant so")
        return bound

    def __str__(self) -> str:
        suffix = "_mean" if self.percent is None else "" if self.percent == 100.0 else f"_p{self.percent:g}"
        return f"{self.metric}{suffix}<{self.limit:g}"


def per_request(bounds: tuple[Bound, ...]) -> Slo:
    """The objective of single requests with the same limits, for goodput: the strictest of each metric."""
    limits: dict[str, float] = {}
    for bound in bounds:
        if bound.metric != "queue":
            limits[bound.metric + "_s"] = min(bound.limit, limits.get(bound.metric + "_s", bound.limit))
    return Slo(**limits)


def promises(tenants: Tenants, slo: Slo | None) -> dict[str, Slo]:
    """Objectives of the tenants that have some, by name; what theirs leaves open, `slo` says."""
    base, found = slo or Slo(), dict[str, Slo]()
    for tenant in tenants:
        if tenant.ttft_slo_s is not None or tenant.tpot_slo_s is not None:
            found[tenant.name] = Slo(
                ttft_s=tenant.ttft_slo_s or base.ttft_s,
                tpot_s=tenant.tpot_slo_s or base.tpot_s,
                itl_s=base.itl_s,
                e2e_s=base.e2e_s,
            )
    return found
