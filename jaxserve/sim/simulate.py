"""One call: a configuration, requests, a cost model; out comes what the users would have seen.

    report = simulate(config, read_trace(path), load_cost(path), slo=Slo.parse("ttft<0.5,tpot<0.05"))
    report.summary.all.ttft.percentile(99)

What runs is the Engine, the Scheduler and the BlockManager that serve; only the device is a cost model.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from jaxserve.core.clock import VirtualClock
from jaxserve.core.config import EngineConfig
from jaxserve.core.settings import require
from jaxserve.core.tenants import Tenants
from jaxserve.costs.model import CostModel
from jaxserve.metrics.slo import Slo, promises
from jaxserve.metrics.summary import Summary
from jaxserve.sim.arrivals import Arrival
from jaxserve.sim.build import Simulated, simulated
from jaxserve.sim.drive import Lane, Served, drive_lanes
from jaxserve.sim.gauges import Gauges
from jaxserve.sim.routers import make_router
from jaxserve.sim.sources import OpenLoop, Source

MOST_REFUSALS = 1000
"""Refused requests that are kept with their reasons; all of them are counted."""


@dataclass(slots=True)
class SimReport:
    """Everything a run says."""

    summary: Summary
    gauges: Gauges
    cost_source: str
    """Where the step times come from: to be shown wherever the figures are."""
    replicas: int = 1
    router: str = "round-robin"
    steps: int = 0
    busy_s: float = 0.0
    """Summed time of the steps, of all replicas."""
    real_tokens: int = 0
    padded_tokens: int = 0
    by_replica: list[int] = field(default_factory=list[int])
    """Requests that each replica was sent."""
    cannot_fit: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    """(request's number, why) of those that can never be served as the configuration is."""

    @property
    def utilization(self) -> float:
        """Share of the time from first arrival to last completion in which a step ran, mean over the replicas."""
        duration_s = self.summary.all.duration_s * self.replicas
        return self.busy_s / duration_s if duration_s else 0.0

    @property
    def padding(self) -> float:
        """Share of the tokens of the programs that ran which were padding."""
        return 1.0 - self.real_tokens / self.padded_tokens if self.padded_tokens else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "cost_model": self.cost_source,
            "replicas": self.replicas,
            "router": self.router,
            **self.summary.to_json(),
            "engine": {
                "steps": self.steps,
                "busy_s": self.busy_s,
                "utilization": self.utilization,
                "padding": self.padding,
                "kv_usage_mean": self.gauges.kv_usage,
                "kv_usage_max": self.gauges.max_kv_usage,
                "max_running": self.gauges.max_running,
                "max_waiting": self.gauges.max_waiting,
                "requests_by_replica": self.by_replica,
            },
            "cannot_fit": [{"request": number, "why": why} for number, why in self.cannot_fit],
            "over_time": self.gauges.to_json(),
        }


def simulate(
    config: EngineConfig,
    arrivals: Iterable[Arrival] | Source,
    cost: CostModel,
    *,
    replicas: int = 1,
    router: str = "round-robin",
    slo: Slo | None = None,
    tenants: Tenants | None = None,
    watch: Callable[[Served], None] | None = None,
) -> SimReport:
    """Serve `arrivals`, in order of time, with `replicas` engines behind a router.

    Without `tenants`: those of the file that the settings name.
    `slo` is what goodput asks of each request; a tenant that was promised something of its own is held to that.
    `watch` is shown every request as it ends; without it the memory does not grow with their number.

    Raises:
      ConfigError: the settings cannot work.
    """
    require(replicas > 0, "replicas", replicas, "a positive number")
    tenants = Tenants.of(config.scheduler) if tenants is None else tenants
    clocks = [VirtualClock() for _ in range(replicas)]
    engines: list[Simulated] = [simulated(config, cost, clock, tenants) for clock in clocks]
    gauges = Gauges()
    lanes = [Lane(s.engine, clock, gauges=gauges) for s, clock in zip(engines, clocks, strict=True)]
    source = OpenLoop(arrivals) if isinstance(arrivals, Iterable) else arrivals
    chosen = make_router(router, replicas, engines[0].engine.scheduler.blocks.max_tokens)
    report = SimReport(Summary(slo, promises(tenants, slo)), gauges, cost.source, replicas, router)
    report.by_replica = [0] * replicas
    for served in drive_lanes(lanes, source, chosen):
        report.summary.add(served)
        report.by_replica[served.replica] += 1
        if served.refused == "cannot_fit" and len(report.cannot_fit) < MOST_REFUSALS:
            report.cannot_fit.append((served.number, served.why))
        if watch is not None:
            watch(served)
    for executor in (s.executor for s in engines):
        report.steps += executor.steps
        report.busy_s += executor.busy_s
        report.real_tokens += executor.real_tokens
        report.padded_tokens += executor.padded_tokens
    return report
