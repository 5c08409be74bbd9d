"""Writes the three Grafana dashboards beside this file: `python deploy/grafana/make.py`.

A panel is a title, a unit and its queries; `m{...}` in a query stands for a metric with the model's label.
"""

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Query = tuple[str, str]
"""(PromQL, legend)"""


def rate(metric: str, by: str = "", where: str = "") -> str:
    return f"sum {f'by ({by}) ' if by else ''}(rate({metric}_total{{{where}}}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str = "") -> str:
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket{{}}[$__rate_interval])))"


def quantiles(metric: str) -> list[Query]:
    return [(quantile(share, metric), f"P{share * 100:g}") for share in (0.5, 0.95, 0.99)]


OVERVIEW: list[tuple[str, str, list[Query]]] = [
    ("Tokens a second", "short", [(rate("generation_tokens"), "output"), (rate("prompt_tokens"), "prompt")]),
    ("Requests", "short", [("sum(num_requests_running{})", "running"), ("sum(num_requests_waiting{})", "waiting"),
                           ("sum(num_requests_swapped{})", "swapped")]),
    ("Time to first token", "s", quantiles("time_to_first_token_seconds")),
    ("Time per output token", "s", quantiles("request_time_per_output_token_seconds")),
    ("Gaps between tokens", "s", quantiles("inter_token_latency_seconds")),
    ("Whole request", "s", quantiles("e2e_request_latency_seconds")),
    ("Where the time goes, P99", "s", [(quantile(0.99, f"request_{part}_time_seconds"), part)
                                       for part in ("queue", "prefill", "decode")]),
    ("Ended requests a second", "short", [(rate("request_success", "finished_reason"), "{{finished_reason}}")]),
    ("Refused a second", "short", [(rate("admission_rejections", "reason"), "{{reason}}")]),
    ("KV in use", "percentunit", [("kv_cache_usage_perc{}", "{{instance}}")]),
    ("Prefix hits", "percentunit", [(f"{rate('prefix_cache_hits')} / {rate('prefix_cache_queries')}", "of tokens")]),
    ("Prompt and output lengths, P95", "short", [(quantile(0.95, "request_prompt_tokens"), "prompt"),
                                                 (quantile(0.95, "request_generation_tokens"), "output")]),
    ("HTTP answers a second", "short", [(rate("http_requests", "status"), "{{status}}")]),
    ("HTTP, P99", "s", [(quantile(0.99, "http_receive_seconds"), "receive"),
                        (quantile(0.99, "http_blocked_seconds"), "blocked by the reader")]),
]  # fmt: skip

TENANTS: list[tuple[str, str, list[Query]]] = [
    ("Objectives met", "percentunit", [(f"{rate('slo_requests_met', 'tenant, objective')} / "
                                        f"{rate('slo_requests', 'tenant, objective')}", "{{tenant}} {{objective}}")]),
    ("Objectives", "s", [("max by (tenant, objective) (slo_objective_seconds{})", "{{tenant}} {{objective}}")]),
    ("Time to first token, P99", "s", [(quantile(0.99, "tenant_time_to_first_token_seconds", "tenant"), "{{tenant}}")]),
    ("Time per output token, P99", "s", [(quantile(0.99, "tenant_time_per_output_token_seconds", "tenant"),
                                          "{{tenant}}")]),
    ("Gaps between tokens, P99", "s", [(quantile(0.99, "tenant_inter_token_latency_seconds", "tenant"), "{{tenant}}")]),
    ("Queue time, P99", "s", [(quantile(0.99, "tenant_queue_time_seconds", "tenant"), "{{tenant}}")]),
    ("Whole request, P99", "s", [(quantile(0.99, "tenant_e2e_request_latency_seconds", "tenant"), "{{tenant}}")]),
    ("Output tokens a second", "short", [(rate("tenant_generation_tokens", "tenant"), "{{tenant}}")]),
    ("Prompt tokens a second", "short", [(rate("tenant_prompt_tokens", "tenant"), "{{tenant}}")]),
    ("Running", "short", [("sum by (tenant) (tenant_requests_running{})", "{{tenant}}")]),
    ("Waiting", "short", [("sum by (tenant) (tenant_requests_waiting{})", "{{tenant}}")]),
    ("KV blocks held", "short", [("sum by (tenant) (tenant_kv_blocks{})", "{{tenant}}")]),
    ("Ended a second", "short", [(rate("tenant_requests", "tenant, finished_reason"),
                                  "{{tenant}} {{finished_reason}}")]),
    ("Refused a second", "short", [(rate("tenant_rejections", "tenant, reason"), "{{tenant}} {{reason}}")]),
    ("Preempted a second", "short", [(rate("tenant_preemptions", "tenant"), "{{tenant}}")]),
]  # fmt: skip

SCHEDULER: list[tuple[str, str, list[Query]]] = [
    ("Steps a second", "short", [(rate("steps", "kind"), "{{kind}}")]),
    ("Steps by bucket", "short", [(rate("bucket_steps", "bucket"), "{{bucket}}")]),
    ("What fills the buckets, tokens a second", "short", [(rate("step_tokens", "kind"), "{{kind}}")]),
    ("Padding", "percentunit", [(rate("step_tokens", where='kind="padding"') + " / " + rate("step_tokens"), "share")]),
    ("Step time", "s", quantiles("step_time_seconds")),
    ("Step time, measured over predicted", "short", [(f"{rate('step_measured_seconds')} / "
                                                      f"{rate('step_predicted_seconds')}", "ratio"),
                                                     ("step_prediction_error_ratio{}", "median error")]),
    ("Step under way", "s", [("step_age_seconds{}", "{{instance}}")]),
    ("Engines that serve", "short", [("engine_up{}", "{{instance}}")]),
    ("Tokens in a step", "short", quantiles("iteration_tokens_total")),
    ("Waiting, for what", "short", [("sum by (reason) (num_requests_waiting_by_reason{})", "{{reason}}")]),
    ("Compilations while serving", "short", [("sum(compilations_after_warmup_total{})", "since the start")]),
    ("Preemptions a second", "short", [(rate("preemptions", "kind"), "{{kind}}"), (rate("num_preemptions"), "all")]),
    ("Lost to preemption, P99", "s", [(quantile(0.99, "request_stalled_seconds"), "stalled")]),
    ("KV blocks", "short", [("sum by (state) (kv_blocks{})", "{{state}}")]),
    ("Blocks in tiers", "short", [("sum by (tier) (tier_blocks{})", "{{tier}}")]),
    ("Moved between tiers", "Bps", [(rate("kv_moved_bytes", "source, target"), "{{source}} to {{target}}")]),
    ("Lost on the disk", "short", [(rate("tier_failures", "operation"), "{{operation}}")]),
]  # fmt: skip


def complete(query: str) -> str:
    """Names with their prefix, and every selector with the model's label."""
    query = re.sub(r"([a-z0-9_]+)\{", r"jaxserve_\1{", query)
    return query.replace("{}", '{model_name="$model_name"}').replace("{kind=", '{model_name="$model_name",kind=')


def dashboard(title: str, panels: list[tuple[str, str, list[Query]]]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "title": f"jaxserve: {title}",
        "uid": f"jaxserve-{title}",
        "tags": ["jaxserve"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus"},
                {
                    "name": "model_name",
                    "type": "query",
                    "datasource": source,
                    "query": "label_values(jaxserve_num_requests_running, model_name)",
                    "refresh": 2,
                },
            ]
        },
        "panels": [
            {
                "id": i + 1,
                "title": name,
                "type": "timeseries",
                "datasource": source,
                "gridPos": {"x": 12 * (i % 2), "y": 8 * (i // 2), "w": 12, "h": 8},
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "options": {"tooltip": {"mode": "multi"}, "legend": {"displayMode": "list", "placement": "bottom"}},
                "targets": [
                    {"refId": chr(65 + j), "datasource": source, "expr": complete(query), "legendFormat": legend}
                    for j, (query, legend) in enumerate(queries)
                ],
            }
            for i, (name, unit, queries) in enumerate(panels)
        ],
    }


def files() -> dict[str, str]:
    made = {"overview": OVERVIEW, "tenants": TENANTS, "scheduler": SCHEDULER}
    return {f"{name}.json": json.dumps(dashboard(name, panels), indent=1) + "\n" for name, panels in made.items()}


if __name__ == "__main__":
    for name, text in files().items():
        (HERE / name).write_text(text)
