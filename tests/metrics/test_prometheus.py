"""The exposition: complete, parsed back by the library's own reader, and equal to the documentation."""

from itertools import pairwise
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.metrics.catalog import METRICS, SECONDS
from jaxserve.metrics.engine_metrics import EngineMetrics
from jaxserve.metrics.page import page
from jaxserve.metrics.prometheus import Exporter, Reading, render
from jaxserve.metrics.snapshot import take
from tests.engine.conftest import build_engine, drive, request

DOCS = Path(__file__).parent.parent.parent / "docs"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"

# Of vLLM 0.33: what its own dashboard shows, and the rest of its names that keep their meaning here.
VLLM = {
    "gauge": ["num_requests_running", "num_requests_waiting", "num_requests_waiting_by_reason", "kv_cache_usage_perc"],
    "counter": ["prompt_tokens", "generation_tokens", "request_success", "num_preemptions", "prefix_cache_queries",
                "prefix_cache_hits", "prompt_tokens_cached", "admission_rejections"],
    "histogram": ["time_to_first_token_seconds", "inter_token_latency_seconds",
                  "request_time_per_output_token_seconds", "e2e_request_latency_seconds",
                  "request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
                  "request_inference_time_seconds", "request_prompt_tokens", "request_generation_tokens",
                  "request_max_num_generation_tokens", "iteration_tokens_total", "request_num_preemptions"],
    "info": ["cache_config_info"],
}  # fmt: skip


def registry(prefix: str = "jaxserve_", load: bool = True) -> CollectorRegistry:
    engine = build_engine(blocks=10, tenants=Tenants([Tenant(name="x", ttft_slo_s=1.0, tpot_slo_s=1.0)]))
    metrics = EngineMetrics()
    engine.observers.append(metrics)
    if load:
        for i in range(8):
            engine.add(request(f"r{i}", list(range(5 + i)), max_tokens=20, tenant="x"))
        drive(engine)
    reading = Reading(
        counts=(metrics.counts,),
        snapshot=take(engine.scheduler, 0.0),
        tenants=engine.scheduler.tenants,
        block_bytes=100,
        cache_info={"block_size": "8"},
    )
    found = CollectorRegistry()
    found.register(Exporter(prefix, "a/model", lambda: reading))
    return found


def test_the_names_of_vllm_are_all_there_with_their_kinds() -> None:
    for kind, names in VLLM.items():
        for name in names:
            assert METRICS[name].kind == kind and METRICS[name].vllm
    assert sum(map(len, VLLM.values())) == sum(metric.vllm for metric in METRICS.values())


@pytest.mark.parametrize("prefix", ["jaxserve_", "vllm:"])
def test_what_is_exported_is_what_the_catalog_lists(prefix: str) -> None:
    body, _ = render(registry(prefix), "")
    families = {family.name: family for family in parse_text(body.decode())}
    for name, metric in METRICS.items():
        family = families.pop(prefix + name)
        assert family.type == ("gauge" if metric.kind == "info" else metric.kind)
        for sample in family.samples:
            assert sample.labels.pop("model_name") == "a/model"
            assert metric.kind == "info" or set(sample.labels) - {"le"} == set(metric.labels)
    assert not families, "exported and not in the catalog"


@pytest.mark.parametrize("load", [True, False])
def test_both_formats_say_the_same(load: bool) -> None:
    made = registry(load=load)
    text, text_type = render(made, "text/plain")
    openmetrics, openmetrics_type = render(made, OPENMETRICS)
    assert text_type.startswith("text/plain") and openmetrics_type.startswith("application/openmetrics-text")
    assert openmetrics.endswith(b"# EOF\n")

    def samples(families):
        return {
            (s.name, tuple(sorted(s.labels.items()))): s.value
            for f in families
            for s in f.samples
            if s.value == s.value
        }

    assert samples(parse_text(text.decode())) == samples(parse_openmetrics(openmetrics.decode()))


def test_series_exist_before_the_first_request() -> None:
    """A rate needs a value to rise from, and an alert on a counter a series to look at."""
    body, _ = render(registry(load=False), "")
    lines = body.decode().splitlines()
    assert 'jaxserve_request_success_total{finished_reason="error",model_name="a/model"} 0.0' in lines
    assert 'jaxserve_tenant_time_to_first_token_seconds_count{model_name="a/model",tenant="x"} 0.0' in lines
    assert 'jaxserve_num_preemptions_total{model_name="a/model"} 0.0' in lines


def test_buckets_suit_both_5_ms_and_60_s() -> None:
    assert SECONDS[0] == 0.005 and SECONDS[-1] == 60.0 and 0.5 in SECONDS
    assert max(b / a for a, b in pairwise(SECONDS)) <= 2.0


def test_the_page_is_the_catalog() -> None:
    assert (DOCS / "metrics.md").read_text() == page(), "run python -m jaxserve.metrics.page > docs/metrics.md"
