"""What one run showed: latencies by the field's definitions, and what the steps did."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bench.stage import ReadyEngine
from jaxserve.core.step_record import StepRecord
from jaxserve.metrics.slo import Slo, promises
from jaxserve.metrics.summary import GroupSummary, Summary
from jaxserve.sim.arrivals import Arrival


@dataclass
class Steps:
    """An engine's observer."""

    count: int = 0
    busy_s: float = 0.0
    real_tokens: int = 0
    padded_tokens: int = 0

    def observe(self, record: StepRecord) -> None:
        if record.plan is not None and record.plan.num_tokens:
            self.count += 1
            self.busy_s += record.seconds
            self.real_tokens += record.plan.num_tokens
            self.padded_tokens += record.plan.bucket.tokens


@dataclass
class Observed:
    """`long_from`: prompts of so many tokens and more are the long ones."""

    summary: Summary
    short: GroupSummary
    long: GroupSummary
    steps: Steps = field(default_factory=Steps)

    def figures(self) -> dict[str, Any]:
        """Seconds, rates and shares, by name; None where nothing was measured."""
        group, steps = self.summary.all, self.steps
        found: dict[str, Any] = {
            "completed": group.completed,
            "refused": group.refused.total(),
            "failed": group.failed,
            "tokens_per_s": group.throughput,
            "requests_per_s": group.completed / group.duration_s if group.duration_s else 0.0,
            "goodput": group.goodput,
            "preemptions": group.preemptions,
            "steps": steps.count,
            "step_s": steps.busy_s / steps.count if steps.count else None,
            "padding": 1.0 - steps.real_tokens / steps.padded_tokens if steps.padded_tokens else None,
            "ttft_short_p99_s": _at(self.short, "ttft", 99),
            "ttft_long_p99_s": _at(self.long, "ttft", 99),
        }
        for metric in ("ttft", "tpot", "itl", "e2e"):
            for percent in (50, 99):
                found[f"{metric}_p{percent}_s"] = _at(group, metric, percent)
        return found


def observe(ready: ReadyEngine, arrivals: Iterable[Arrival], *, slo: Slo | None = None, long_from: int = 1) -> Observed:
    """Serve the arrivals. The engine's tenants are held to their own objectives, where they have some, and to `slo` in
    the rest."""
    tenants = ready.engine.scheduler.tenants
    seen = Observed(Summary(slo, promises(tenants, slo)), GroupSummary(), GroupSummary())
    for served in ready.serve(arrivals, seen.steps):
        seen.summary.add(served)
        (seen.long if served.prompt_tokens >= long_from else seen.short).add(served, met=None)
    return seen


def _at(group: GroupSummary, metric: str, percent: float) -> float | None:
    value = group.distribution(metric).percentile(percent)
    return value if value == value else None
