"""Every metric: its name, kind, labels, buckets and meaning. The exporter and docs/metrics.md are made from this table.

Names that vLLM has too carry its meaning, so that its dashboards work under `--metrics-prefix vllm:`. All have the
label `model_name` as well. Counters are exported with `_total`, which vLLM's names leave out here as in its own code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxserve.core.decisions import Reason
from jaxserve.core.sequence import FinishReason

Kind = Literal["counter", "gauge", "histogram", "info"]

SECONDS = (
    0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75,
    1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0,
)  # fmt: skip
"""For waits of whole requests: objectives from 50 ms to 10 s fall on, or near, a bound."""
SHORT_SECONDS = (0.001, 0.002, 0.003, *SECONDS[:-4])
"""For one token, or one step."""
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
FEW = (0, 1, 2, 3, 5, 10)


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    kind: Kind
    doc: str
    labels: tuple[str, ...] = ()
    buckets: Sequence[float] = ()
    values: tuple[str, ...] = ()
    """What its only label can be; empty: not known beforehand."""
    vllm: bool = False
    """vLLM exports it under the same name with the same meaning."""


REASONS = tuple(reason.value for reason in Reason)
ENDS = tuple(reason.value for reason in FinishReason)
REFUSALS = ("queue_full", "rate_limit", "tenant_limit", "slo", "max_open_requests", "drain", "starting", "invalid")
TIERS = ("host", "disk")


def _vllm(
    name: str,
    kind: Kind,
    doc: str,
    labels: tuple[str, ...] = (),
    buckets: Sequence[float] = (),
    values: tuple[str, ...] = (),
) -> Metric:
    return Metric(name, kind, doc, labels, buckets, values, vllm=True)


REQUESTS = (
    _vllm("num_requests_running", "gauge", "sequences in the running batch"),
    _vllm("num_requests_waiting", "gauge", "sequences that wait to be scheduled, preempted ones included"),
    _vllm("num_requests_waiting_by_reason", "gauge", "the same by what they wait for", ("reason",), (), REASONS),
    Metric("num_requests_swapped", "gauge", "preempted sequences whose KV is in host memory or on disk", ("tier",), (),
           TIERS),
    _vllm("prompt_tokens", "counter", "prompt tokens of requests that got their first token"),
    _vllm("prompt_tokens_cached", "counter", "of these, tokens whose KV was found in the prefix cache"),
    _vllm("generation_tokens", "counter", "output tokens"),
    _vllm("request_success", "counter", "sequences that ended: stop, length, abort, error", ("finished_reason",), (),
          ENDS),
    Metric("nonfinite_logits", "counter", "of the errors, sequences whose logits were not finite: NaN, infinite, or "
           "-inf for every token"),
    _vllm("admission_rejections", "counter", "requests refused, by reason", ("reason",), (), REFUSALS),
    _vllm("time_to_first_token_seconds", "histogram", "from the request's arrival to its first token", (), SECONDS),
    _vllm("inter_token_latency_seconds", "histogram", "gap between two output tokens", (), SHORT_SECONDS),
    _vllm("request_time_per_output_token_seconds", "histogram", "(last token - first) / (output tokens - 1)", (),
          SHORT_SECONDS),
    _vllm("e2e_request_latency_seconds", "histogram", "from arrival to the last token", (), SECONDS),
    _vllm("request_queue_time_seconds", "histogram", "from arrival in the scheduler to the first step", (), SECONDS),
    _vllm("request_prefill_time_seconds", "histogram", "from the first step to the first token", (), SECONDS),
    _vllm("request_decode_time_seconds", "histogram", "from the first token to the last", (), SECONDS),
    _vllm("request_inference_time_seconds", "histogram", "from the first step to the last token", (), SECONDS),
    Metric("request_stalled_seconds", "histogram", "time a sequence lost by preemption; sequences that were preempted",
           (), SECONDS),
    _vllm("request_prompt_tokens", "histogram", "prompt tokens of a request", (), TOKENS),
    _vllm("request_generation_tokens", "histogram", "output tokens of a sequence", (), TOKENS),
    _vllm("request_max_num_generation_tokens", "histogram", "output tokens that were allowed", (), TOKENS),
    Metric("request_uncached_prompt_tokens", "histogram", "prompt tokens that had to be computed", (), TOKENS),
    _vllm("request_num_preemptions", "histogram", "times a sequence was preempted", (), FEW),
)  # fmt: skip

CACHE = (
    _vllm("kv_cache_usage_perc", "gauge", "share of the KV blocks that sequences hold; 1 is full"),
    _vllm("prefix_cache_queries", "counter", "tokens looked up in the prefix cache"),
    _vllm("prefix_cache_hits", "counter", "tokens found there"),
    _vllm("num_preemptions", "counter", "sequences that were preempted"),
    _vllm("cache_config_info", "info", "the KV pool's settings, as labels; always 1"),
    Metric("preemptions", "counter", "the same by what became of their KV: recompute, host, disk", ("kind",), (),
           ("recompute", *TIERS)),
    Metric("kv_blocks", "gauge", "KV blocks: used (one holder), shared (several), cached (free, content known), free",
           ("state",), (), ("free", "cached", "used", "shared")),
    Metric("tier_blocks", "gauge", "blocks held in the offload tiers", ("tier",), (), TIERS),
    Metric("tier_capacity_blocks", "gauge", "size of the offload tiers", ("tier",), (), TIERS),
    Metric("kv_moved_bytes", "counter", "KV bytes moved between tiers", ("source", "target")),
    Metric("tier_failures", "counter", "blocks lost on the disk tier: save, fetch", ("operation",), (),
           ("save", "fetch")),
)  # fmt: skip

STEPS = (
    _vllm("iteration_tokens_total", "histogram", "tokens in a step", (), TOKENS),
    Metric("steps", "counter", "steps: decode, prefill, mixed, moves (blocks only)", ("kind",), (),
           ("decode", "prefill", "mixed", "moves")),
    Metric("bucket_steps", "counter", "steps by bucket; 64d+512p is 64 decode rows and 512 prefill tokens",
           ("bucket",)),
    Metric("step_tokens", "counter", "what filled the buckets: decode, prefill, padding", ("kind",), (),
           ("decode", "prefill", "padding")),
    Metric("step_time_seconds", "histogram", "time of a step", (), SHORT_SECONDS),
    Metric("step_measured_seconds", "counter", "summed time of the steps that were predicted"),
    Metric("step_predicted_seconds", "counter", "what the cost model had predicted for them"),
    Metric("step_prediction_error_ratio", "gauge", "median of |measured / predicted - 1| over the last steps"),
    Metric("compilations_after_warmup", "counter", "programs compiled while serving; 0 unless a bucket is missing"),
    Metric("engine_up", "gauge", "1 while the engine serves; 0 when a failure has ended its thread"),
    Metric("step_age_seconds", "gauge", "how long the step under way has been running; grows when the device hangs"),
)  # fmt: skip

TENANTS = (
    Metric("tenant_requests_running", "gauge", "sequences running", ("tenant",)),
    Metric("tenant_requests_waiting", "gauge", "sequences waiting", ("tenant",)),
    Metric("tenant_kv_blocks", "gauge", "KV blocks held", ("tenant",)),
    Metric("tenant_requests", "counter", "sequences that ended", ("tenant", "finished_reason")),
    Metric("tenant_rejections", "counter", "requests refused by the engine", ("tenant", "reason")),
    Metric("tenant_prompt_tokens", "counter", "prompt tokens", ("tenant",)),
    Metric("tenant_generation_tokens", "counter", "output tokens", ("tenant",)),
    Metric("tenant_preemptions", "counter", "sequences that were preempted", ("tenant",)),
    Metric("tenant_time_to_first_token_seconds", "histogram", "as time_to_first_token_seconds", ("tenant",), SECONDS),
    Metric("tenant_time_per_output_token_seconds", "histogram", "as request_time_per_output_token_seconds",
           ("tenant",), SHORT_SECONDS),
    Metric("tenant_inter_token_latency_seconds", "histogram", "as inter_token_latency_seconds", ("tenant",),
           SHORT_SECONDS),
    Metric("tenant_e2e_request_latency_seconds", "histogram", "as e2e_request_latency_seconds", ("tenant",), SECONDS),
    Metric("tenant_queue_time_seconds", "histogram", "as request_queue_time_seconds", ("tenant",), SECONDS),
    Metric("slo_requests", "counter", "requests judged by what their tenant was promised, by ttft also those that "
           "failed, or were given up when it was over, before a first token; without those that asked for less (a "
           "lower class, a looser objective); objective: ttft, tpot", ("tenant", "objective")),
    Metric("slo_requests_met", "counter", "of these, requests that met it", ("tenant", "objective")),
    Metric("request_slo_requests", "counter", "requests with an objective of their own, judged by that alone; no alert "
           "looks at them", ("tenant", "objective")),
    Metric("request_slo_requests_met", "counter", "of these, requests that met it", ("tenant", "objective")),
    Metric("slo_objective_seconds", "gauge", "the tenant's objective, where it has one", ("tenant", "objective")),
)  # fmt: skip

HTTP = (
    Metric("http_requests", "counter", "answers by route and status", ("route", "status")),
    Metric("http_requests_open", "gauge", "calls under way that may make work"),
    Metric("http_receive_seconds", "histogram", "from a call's first byte to a request ready for the engine: slow "
           "uploads and tokenization", (), SECONDS),
    Metric("http_blocked_seconds", "histogram", "time that an answer waited for its client to read", (), SECONDS),
    Metric("batch_lines", "counter", "lines of batches that have an answer or an error, by endpoint and status",
           ("endpoint", "status")),
    Metric("batch_lines_open", "gauge", "lines of batches under way"),
)  # fmt: skip

METRICS = {metric.name: metric for metric in (*REQUESTS, *CACHE, *STEPS, *TENANTS, *HTTP)}
BOUNDS = {metric.name: metric.buckets for metric in METRICS.values() if metric.kind == "histogram"}
