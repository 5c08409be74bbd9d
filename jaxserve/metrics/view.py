"""What the dashboard and `jaxserve doctor` are sent: a snapshot, latencies by tenant, and what is new in the history.

Plain JSON values, times in seconds on the engine's clock. A reader passes the `Seen` of the view before and gets only
steps, requests and points that it does not have; without one, all that are kept, and the scheduler's settings.

Refusals, ends and starvation cover the last LOOK_S in which anything happened for a reader that has seen nothing, and
the last WINDOW_S for the others; `lately` always covers the last WINDOW_S.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.tenants import Tenants
from jaxserve.metrics.by_second import BySecond
from jaxserve.metrics.counts import Counts
from jaxserve.metrics.distribution import percentile
from jaxserve.metrics.engine_metrics import EngineMetrics
from jaxserve.metrics.history import History, Point
from jaxserve.metrics.snapshot import Snapshot
from jaxserve.metrics.starvation import SPAN_S
from jaxserve.metrics.window import LOOK_S
from jaxserve.sched.journal import Journal

WINDOW_S = 30.0
"""Percentiles are of what became known in so long a time."""
MAP_CELLS = 4096
"""More KV blocks than this are drawn several to a cell, each by its fullest."""
TOTALS = ("prompt_tokens", "generation_tokens", "prompt_tokens_cached", "num_preemptions", "admission_rejections",
          "request_success", "step_measured_seconds", "step_predicted_seconds")  # fmt: skip
PATHS = ("tenants", "cost_model")
"""Settings that name files: they stay here."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The last numbers that a reader has."""

    step: int = 0
    request: int = 0
    point: int = 0
    second: int = 0


def view(
    snapshot: Snapshot, metrics: EngineMetrics, journal: Journal, tenants: Tenants, config: SchedulerConfig, seen: Seen
) -> tuple[Any, Seen]:
    """(the view, what its reader will have seen)"""
    history, counts = metrics.history, metrics.counts
    new_reader = seen == Seen()
    begin_s = _active_s(history, snapshot.now) - LOOK_S if new_reader else snapshot.now - WINDOW_S
    steps = [asdict(step) for step in history.steps if step.number > seen.step]
    requests: list[dict[str, Any]] = [
        asdict(request) | {"waits": journal.waits(request.id)}
        for request in history.requests
        if request.number > seen.request
    ]
    points = [asdict(point) for point in history.points if point.number > seen.point]
    seconds = [asdict(second) for second in history.seconds if second.at_s >= seen.second]
    content = {
        "now_s": snapshot.now,
        "window_s": WINDOW_S,
        "running": snapshot.running.total(),
        "waiting": snapshot.waiting.total(),
        "waiting_by_reason": dict(snapshot.waiting_by_reason),
        "live": [asdict(live) for live in snapshot.live],
        "tenants": _tenants(snapshot, metrics, tenants, config, begin_s),
        "refusals": refusals(history.refused, begin_s, snapshot.now - WINDOW_S),
        "kv": _kv(snapshot),
        "prediction_error": snapshot.prediction_error,
        "totals": {name: sum(counts.counters[name].values()) for name in TOTALS},
        "padding_share": _padding(counts),
        "steps": steps,
        "requests": requests,
        "points": points,
        "seconds": seconds,
    }
    if new_reader:
        content["settings"] = {name: value for name, value in asdict(config).items() if name not in PATHS}
    last = Seen(
        step=steps[-1]["number"] if steps else seen.step,
        request=requests[-1]["number"] if requests else seen.request,
        point=points[-1]["number"] if points else seen.point,
        second=seconds[-1]["at_s"] if seconds else seen.second,
    )
    return content, last


def refusals(counted: BySecond, begin_s: float, lately_s: float) -> list[dict[str, Any]]:
    """Counts of (tenant, reason) since `begin_s`, and of these since `lately_s`, as rows."""
    lately = counted.since(lately_s)
    return [
        {"tenant": tenant, "reason": reason, "count": count, "lately": lately.get((tenant, reason), 0)}
        for (tenant, reason), count in counted.since(begin_s).items()
    ]


def _active_s(history: History, now: float) -> float:
    """When something ran, ended or was refused for the last time."""
    return min(history.seconds[-1].at_s + 1.0, now) if history.seconds else now


def _tenants(
    snapshot: Snapshot, metrics: EngineMetrics, tenants: Tenants, config: SchedulerConfig, begin_s: float
) -> list[dict[str, Any]]:
    history, counters = metrics.history, metrics.counts.counters
    since = snapshot.now - WINDOW_S
    ttft, tpot = history.latencies("ttft", since), history.latencies("tpot", since)
    ended, lately = history.ended.since(begin_s), history.ended.since(since)
    weights = {tenant.name: tenant.weight for tenant in tenants}
    starved = history.service.starved(weights, config.fair_input_weight, config.fair_output_weight, begin_s)
    refused: Counter[str] = Counter()
    for (tenant, _), count in counters["tenant_rejections"].items():
        refused[tenant] += int(count)
    shown: list[dict[str, Any]] = []
    for tenant in tenants:
        name = tenant.name
        first, hunger = snapshot.first_waiting.get(name), starved.get(name)
        about = {field: value for field, value in asdict(tenant).items() if field != "keys"}
        shown.append(
            about
            | {
                "ttft_slo_s": tenant.ttft_slo_s or config.ttft_slo_s,
                "tpot_slo_s": tenant.tpot_slo_s or config.tpot_slo_s,
                "running": snapshot.running[name],
                "waiting": snapshot.waiting[name],
                "waits_s": None if first is None else first.age_s,
                "waits_for": None if first is None else first.waits_for,
                "blocks": snapshot.held_blocks[name],
                "generation_tokens": counters["tenant_generation_tokens"].get((name,), 0),
                "refused": refused[name],
                "ended": ended.get((name,), 0),
                "ended_lately": lately.get((name,), 0),
                "starved": None if hunger is None else asdict(hunger) | {"now": _goes_on(hunger.ended_s, snapshot)},
                "ttft": _latency(ttft.get(name, []), tenant.ttft_slo_s),
                "tpot": _latency(tpot.get(name, []), tenant.tpot_slo_s),
            }
        )
    return shown


def _goes_on(ended_s: int, snapshot: Snapshot) -> bool:
    """Not over for long: a tenant that is served now and then between long waits is starved all the time."""
    return snapshot.now - ended_s <= 2 * SPAN_S


def _latency(points: Iterable[Point], slo_s: float | None) -> dict[str, Any]:
    """`slo_s`: the tenant's own; where it has none, the last judged request's is shown."""
    points = list(points)
    values = [point.seconds for point in points]
    judged = [point for point in points if point.slo_s is not None]
    met = sum(point.seconds <= (point.slo_s or 0.0) for point in judged)
    return {
        "count": len(values),
        "p50": percentile(values, 50) if values else None,
        "p99": percentile(values, 99) if values else None,
        "slo_s": slo_s if slo_s is not None or not judged else judged[0].slo_s,
        "attained": met / len(judged) if judged else None,
    }


def _kv(snapshot: Snapshot) -> dict[str, Any]:
    free, cached, used, shared = snapshot.blocks
    states, per_cell = snapshot.block_map, -(-len(snapshot.block_map) // MAP_CELLS)
    cells = [max(states[i : i + per_cell]) for i in range(0, len(states), per_cell)] if states else []
    return {
        "free": free,
        "cached": cached,
        "used": used,
        "shared": shared,
        "usage": snapshot.kv_usage,
        "prefix_queries": snapshot.prefix_queries,
        "prefix_hits": snapshot.prefix_hits,
        "blocks_per_cell": per_cell,
        "map": "".join(map(str, cells)),
        "tiers": [
            {
                "name": name,
                "used": snapshot.tier_used[name],
                "capacity": capacity,
                "sequences": snapshot.swapped[name],
            }
            for name, capacity in snapshot.tier_capacity.items()
        ],
    }


def _padding(counts: Counts) -> float | None:
    """Share of the buckets' tokens so far that were padding."""
    tokens = counts.counters["step_tokens"]
    total = sum(tokens.values())
    return tokens.get(("padding",), 0) / total if total else None
