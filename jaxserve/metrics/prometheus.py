# pyright: basic, reportMissingImports=false
"""Metrics as Prometheus reads them: a `prometheus_client` collector over counts and a snapshot.

registry = CollectorRegistry()
registry.register(Exporter("jaxserve_", "my-model", lambda: Reading(...)))
body, content_type = render(registry, accept_header)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from jaxserve.core.tenants import Tenants
from jaxserve.metrics import catalog
from jaxserve.metrics.counts import Counts, Histogram, Labels
from jaxserve.metrics.snapshot import BLOCK_STATES, Snapshot

Series = Mapping[Labels, float]


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything that one scrape shows."""

    counts: tuple[Counts, ...]
    """Of several writers; no two count the same metric with the same labels."""
    snapshot: Snapshot
    tenants: Tenants
    block_bytes: int = 0
    """K/V of one block, all layers."""
    compilations_after_warmup: int = 0
    engine_up: bool = True
    step_age_s: float = 0.0
    open_calls: int = 0
    open_lines: int = 0
    """Of batches."""
    cache_info: Mapping[str, str] = field(default_factory=dict[str, str])


class Exporter(Collector):
    """Reads anew with every scrape. `prefix`: what stands before every name, its `_` or `:` included."""

    def __init__(self, prefix: str, model_name: str, read: Callable[[], Reading]) -> None:
        self._prefix, self._model_name, self._read = prefix, model_name, read
        self._tenants: list[str] = []

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        reading = self._read()
        gauges, counters = _gauges(reading), _counters(reading)
        self._tenants = [tenant.name for tenant in reading.tenants]
        for metric in catalog.METRICS.values():
            if metric.kind == "histogram":
                yield self._histogram(metric, reading.counts)
            elif metric.kind == "counter":
                counted = counters.get(metric.name)
                yield self._family(
                    CounterMetricFamily, metric, _merged(metric.name, reading.counts) if counted is None else counted
                )
            elif metric.kind == "info":
                yield self._info(metric, reading.cache_info)
            else:
                yield self._family(GaugeMetricFamily, metric, gauges[metric.name])

    def _family(
        self, kind: type[CounterMetricFamily] | type[GaugeMetricFamily], metric: catalog.Metric, series: Series
    ) -> Metric:
        family = kind(self._prefix + metric.name, metric.doc, labels=("model_name", *metric.labels))
        for labels, value in (dict.fromkeys(self._expected(metric), 0.0) | dict(series)).items():
            family.add_metric((self._model_name, *labels), value)
        return family

    def _histogram(self, metric: catalog.Metric, counts: tuple[Counts, ...]) -> Metric:
        family = HistogramMetricFamily(self._prefix + metric.name, metric.doc, labels=("model_name", *metric.labels))
        series = {labels: Histogram(metric.buckets) for labels in self._expected(metric)}
        for writer in counts:
            series |= list(writer.histograms[metric.name].items())
        for labels, histogram in series.items():
            family.add_metric((self._model_name, *labels), histogram.cumulative(), histogram.total)
        return family

    def _expected(self, metric: catalog.Metric) -> list[Labels]:
        """Series that are shown from the start, at 0: a rate needs a first value to rise from."""
        if metric.labels == ("tenant",):
            return [(name,) for name in self._tenants]
        return [()] if not metric.labels else [(value,) for value in metric.values]

    def _info(self, metric: catalog.Metric, info: Mapping[str, str]) -> Metric:
        family = GaugeMetricFamily(self._prefix + metric.name, metric.doc, labels=("model_name", *info))
        family.add_metric((self._model_name, *info.values()), 1.0)
        return family


def render(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """(body, content type) in the format that the scraper prefers."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def _merged(name: str, counts: tuple[Counts, ...]) -> Series:
    series: dict[Labels, float] = {}
    for writer in counts:
        series |= list(writer.counters[name].items())
    return series


def _by_name(numbers: Mapping[str, float]) -> Series:
    return {(name,): value for name, value in numbers.items()}


def _counters(reading: Reading) -> dict[str, Series]:
    """Counters whose count is kept elsewhere."""
    snapshot = reading.snapshot
    moved = _merged("kv_moved_blocks", reading.counts)
    return {
        "prefix_cache_queries": {(): snapshot.prefix_queries},
        "prefix_cache_hits": {(): snapshot.prefix_hits},
        "tier_failures": {("save",): snapshot.failed_saves, ("fetch",): snapshot.failed_fetches},
        "kv_moved_bytes": {labels: blocks * reading.block_bytes for labels, blocks in moved.items()},
        "compilations_after_warmup": {(): reading.compilations_after_warmup},
    }


def _gauges(reading: Reading) -> dict[str, Series]:
    snapshot, tenants = reading.snapshot, reading.tenants
    objectives = {
        (tenant.name, objective): seconds
        for tenant in tenants
        for objective, seconds in (("ttft", tenant.ttft_slo_s), ("tpot", tenant.tpot_slo_s))
        if seconds is not None
    }
    error = snapshot.prediction_error
    return {
        "num_requests_running": {(): snapshot.running.total()},
        "num_requests_waiting": {(): snapshot.waiting.total()},
        "num_requests_waiting_by_reason": _by_name(snapshot.waiting_by_reason),
        "num_requests_swapped": _by_name(snapshot.swapped),
        "kv_cache_usage_perc": {(): snapshot.kv_usage},
        "kv_blocks": _by_name(dict(zip(BLOCK_STATES, snapshot.blocks, strict=True))),
        "tier_blocks": _by_name(snapshot.tier_used),
        "tier_capacity_blocks": _by_name(snapshot.tier_capacity),
        "step_prediction_error_ratio": {(): float("nan") if error is None else error},
        "engine_up": {(): float(reading.engine_up)},
        "step_age_seconds": {(): reading.step_age_s},
        "tenant_requests_running": _by_name(snapshot.running),
        "tenant_requests_waiting": _by_name(snapshot.waiting),
        "tenant_kv_blocks": _by_name(snapshot.held_blocks),
        "slo_objective_seconds": objectives,
        "http_requests_open": {(): reading.open_calls},
        "batch_lines_open": {(): reading.open_lines},
    }
