"""What if the recorded requests had come to another configuration? Both are simulated, and compared in pairs.

Both runs use one cost model (of the record's own step times, if no other is given), so that what differs is the
configuration. `measured` says how near the simulation of the recorded configuration comes to what was recorded.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxserve.core.config import EngineConfig
from jaxserve.core.tenants import Tenants
from jaxserve.costs.model import CostModel
from jaxserve.metrics.distribution import percentile
from jaxserve.metrics.latency import Measured, e2e_s, gaps_s, tpot_s, ttft_s
from jaxserve.metrics.paired import Difference, difference
from jaxserve.metrics.slo import Slo
from jaxserve.sim.drive import Served
from jaxserve.sim.record import Record
from jaxserve.sim.simulate import SimReport, simulate

METRICS = ("ttft", "tpot", "longest gap", "e2e", "queue")
"""Of each request; gaps between tokens (ITL) are many, and the longest is what its reader notices."""
STATISTICS: tuple[tuple[str, float | None], ...] = (("mean", None), ("p50", 50.0), ("p90", 90.0), ("p99", 99.0))


@dataclass(slots=True)
class Counterfactual:
    before: SimReport
    """As recorded, on the simulator."""
    after: SimReport
    pairs: int
    """Requests that both served to the end."""
    differences: dict[str, Difference] = field(default_factory=dict[str, Difference])
    """By name: "ttft p99", "goodput"."""
    measured: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    """As recorded: (in the record, simulated)."""

    def to_json(self) -> dict[str, Any]:
        return {
            "simulated": True,
            "cost_model": self.before.cost_source,
            "pairs": self.pairs,
            "differences": {name: found.to_json() for name, found in self.differences.items()},
            "recorded_and_simulated": {name: list(values) for name, values in self.measured.items()},
            "before": self.before.to_json(),
            "after": self.after.to_json(),
        }


def counterfactual(
    record: Record, config: EngineConfig, cost: CostModel | None = None, slo: Slo | None = None, seed: int = 0
) -> Counterfactual:
    """Serve the recorded requests as they were served, and with `config`; with its tenants, if it names a file."""
    cost = cost or record.fitted()
    tenants = Tenants.of(config.scheduler) if config.scheduler.tenants else record.tenants
    before, one = _run(record, record.config, cost, slo, record.tenants)
    after, two = _run(record, config, cost, slo, tenants)
    both = sorted(one.keys() & two.keys())
    result = Counterfactual(before, after, len(both), measured=_measured(record, one))
    if not both:
        return result
    for metric in METRICS:
        old, new = (np.array([_value(metric, run[number]) for number in both]) for run in (one, two))
        for name, percent in STATISTICS:
            result.differences[f"{metric} {name}"] = difference(old, new, percent, seed)
    if slo is not None:
        old, new = (np.array([float(slo.met(run[number])) for number in both]) for run in (one, two))
        result.differences["goodput of these"] = difference(old, new, None, seed)
    return result


def pool(config: EngineConfig, record: Record) -> EngineConfig:
    """With the recorded pool and longest sequence, unless `config` says otherwise."""
    given: dict[str, Any] = {}
    if config.cache.num_blocks is None and config.cache.kv_cache_bytes is None:
        tokens = (record.num_blocks - 1) * record.config.cache.block_size
        given["num_blocks"] = max(tokens // config.cache.block_size, 1)
    if config.model.max_model_len is None:
        given["max_model_len"] = record.max_model_len
    return config.replace(**given)


def _run(
    record: Record, config: EngineConfig, cost: CostModel, slo: Slo | None, tenants: Tenants
) -> tuple[SimReport, dict[int, Served]]:
    ended: dict[int, Served] = {}

    def keep(served: Served) -> None:
        if not served.refused and not served.failed:
            ended[served.number] = served

    config = pool(config, record)
    return simulate(config, record.arrivals(), cost, slo=slo, tenants=tenants, watch=keep), ended


def _value(metric: str, request: Measured) -> float:
    match metric:
        case "ttft":
            return ttft_s(request.arrival_s, request.token_s)
        case "tpot":
            return tpot_s(request.token_s) or 0.0
        case "longest gap":
            return max(gaps_s(request.token_s), default=0.0)
        case "queue":
            return (request.first_scheduled_s or request.arrival_s) - request.arrival_s
        case _:
            return e2e_s(request.arrival_s, request.token_s)


def _measured(record: Record, simulated: dict[int, Served]) -> dict[str, tuple[float, float]]:
    """TTFT and TPOT of the record beside the simulation's."""
    ttft: list[float] = []
    tpot: list[float] = []
    for request in record.requests:
        for end in request.ends.values():
            if end.first_token_s is not None and end.reason in ("stop", "length"):
                ttft.append(end.first_token_s - request.arrival_s)
                if end.output_tokens > 1:
                    tpot.append((end.ended_s - end.first_token_s) / (end.output_tokens - 1))
    found = {
        "ttft": (ttft, [_value("ttft", served) for served in simulated.values()]),
        "tpot": (tpot, [_value("tpot", s) for s in simulated.values() if len(s.token_s) > 1]),
    }
    return {
        f"{metric} {name}": (percentile(real, percent), percentile(made, percent))
        for metric, (real, made) in found.items()
        if real and made
        for name, percent in STATISTICS[1:]
        if percent is not None
    }
