"""Why P99 has gone up: the causes, each with its evidence and its remedy, from a server's own view (`metrics.view`).

A request that missed is slow in its queue, in its prefill or in its decode; the part that the slow requests have more
of than the usual ones is followed to what filled it. A cause is named only with numbers beyond its threshold; a server
whose slow requests are not much slower than the others, and within their objectives, has none.
"""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

ENOUGH = 10
"""Requests without which nothing is said."""
SLOW = 2.0
"""A tail this many times the median, where no objective says what is too slow."""
LEAST_S = 0.05
"""A difference of less is nobody's trouble."""


class Cause(enum.StrEnum):
    QUEUEING = "queueing"
    LONG_PROMPTS = "longer prompts"
    KV_PRESSURE = "KV pressure"
    PREEMPTION = "preemption"
    PADDING = "padding"
    RECOMPILATION = "recompilation"
    SLOW_STEPS = "slow steps"
    NETWORK = "network"


@dataclass(frozen=True, slots=True)
class Finding:
    """`weight`: seconds of the slow requests that it explains; the heaviest comes first."""

    cause: Cause
    weight: float
    evidence: str
    advice: str


def diagnose(view: Mapping[str, Any], round_trip_s: float = 0.0, server_s: float = 0.0) -> list[Finding]:
    """Causes, the heaviest first; none for a healthy server.

    `round_trip_s`: median time of an empty call as its caller sees it. `server_s`: mean time that answers waited for
    their readers and bodies took to come in, as the server sees it.
    """
    findings = [*_network(round_trip_s, server_s), *_recompilation(view)]
    requests = [r for r in view["requests"] if r["reason"] in ("stop", "length") and r["ttft_s"] is not None]
    if len(requests) >= ENOUGH:
        slow = _slow(requests)
        if slow:
            usual = [r for r in requests if r not in slow] or requests
            findings += [*_queue(view, slow), *_prefill(slow, usual), *_preemption(slow), *_steps(view, slow)]
    return sorted(findings, key=lambda finding: -finding.weight)


def _slow(requests: list[Any]) -> list[Any]:
    """Those that missed an objective, if that is 1 of 100 or more; without objectives, a tail far from the median."""
    judged = [r for r in requests if r["ttft_slo_s"] is not None or r["tpot_slo_s"] is not None]
    missed = [r for r in judged if _over(r, "ttft") or _over(r, "tpot")]
    if judged:
        return missed if len(missed) >= max(1, len(judged) // 100) else []
    times = sorted(r["ttft_s"] for r in requests)
    typical, edge = times[len(times) // 2], times[int(0.9 * len(times))]
    if edge < max(SLOW * typical, typical + LEAST_S) and not _all_queue(requests):
        return []
    return [r for r in requests if r["ttft_s"] >= edge]


def _over(request: Any, kind: str) -> bool:
    slo, value = request[f"{kind}_slo_s"], request[f"{kind}_s"]
    return slo is not None and value is not None and value > slo


def _all_queue(requests: list[Any]) -> bool:
    """Even the usual request waits longer than it is worked on."""
    return _mid(requests, "queue_s") > max(LEAST_S, _mid(requests, "prefill_s") + _mid(requests, "decode_s"))


def _queue(view: Mapping[str, Any], slow: list[Any]) -> Iterable[Finding]:
    slow = [r for r in slow if r["ttft_slo_s"] is None or _over(r, "ttft")]  # who was slow later did not queue too long
    if not slow:
        return
    queue, rest = _mid(slow, "queue_s"), _mid(slow, "prefill_s")
    if queue < LEAST_S or queue < rest:
        return
    reasons: dict[str, int] = {
        reason: count for reason, count in view["waiting_by_reason"].items() if reason != "order"
    }
    most = max(reasons, key=lambda reason: reasons[reason]) if reasons else None
    kv = view["kv"]["usage"]
    told = f"slow requests wait {queue:.2f} s in the queue, of {queue + rest:.2f} s to the first token; "
    told += (
        f"{view['waiting']} wait now" + (f", the first of them for {most}" if most else "") + f"; KV in use {kv:.0%}"
    )
    if most in ("blocks", "share", "tier"):
        yield Finding(
            Cause.KV_PRESSURE, queue, told,
            "give the pool more room (gpu_memory_utilization, kv_cache_bytes), or an offload tier; shorten max_tokens"
            + ("; raise the tenant's kv_max" if most == "share" else ""),
        )  # fmt: skip
    else:
        yield Finding(
            Cause.QUEUEING, queue, told,
            f"more comes than is served: raise max_num_seqs (now {view['max_num_seqs']}) if KV has room, refuse early "
            "(--admission slo), weigh tenants (--ordering fair), or add a server",
        )  # fmt: skip


def _prefill(slow: list[Any], usual: list[Any]) -> Iterable[Finding]:
    own = _mid(slow, "prefill_s")
    fresh = [r["prompt_tokens"] - r["cached_tokens"] for r in slow]
    normal = [r["prompt_tokens"] - r["cached_tokens"] for r in usual]
    grown = median(fresh) / max(median(normal), 1)
    if grown >= SLOW and own - _mid(usual, "prefill_s") >= LEAST_S / 5 and own > _mid(slow, "queue_s"):
        yield Finding(
            Cause.LONG_PROMPTS, own,
            f"slow requests have {median(fresh):.0f} prompt tokens to compute, the others {median(normal):.0f}; their "
            f"prefill takes {own:.2f} s against {_mid(usual, 'prefill_s'):.2f} s",
            "give prefill more of a step (max_num_batched_tokens), share prefixes (enable_prefix_caching), keep long "
            "prompts from each other (long_prefill_token_threshold), or give them a tenant of their own",
        )  # fmt: skip


def _preemption(slow: list[Any]) -> Iterable[Finding]:
    stalled = [r for r in slow if r["preemptions"]]
    if len(stalled) * 4 >= len(slow) and stalled:
        lost = median(r["stalled_s"] for r in stalled)
        yield Finding(
            Cause.PREEMPTION, lost * len(stalled) / len(slow),
            f"{len(stalled)} of {len(slow)} slow requests were preempted and lost {lost:.2f} s each",
            "raise watermark, lower max_num_seqs, give the KV pool more room, or an offload tier (offload_host_bytes)",
        )  # fmt: skip


def _steps(view: Mapping[str, Any], slow: list[Any]) -> Iterable[Finding]:
    steps = view["steps"]
    if len(steps) < 20:
        return
    tokens = sum(s["decodes"] + s["prefill_tokens"] for s in steps)
    padding = sum(s["padding"] for s in steps)
    share = padding / max(tokens + padding, 1)
    worked = _mid(slow, "prefill_s") + _mid(slow, "decode_s")
    if share > 0.6 and worked > _mid(slow, "queue_s"):
        buckets = sorted({s["bucket"] for s in steps})
        yield Finding(
            Cause.PADDING, worked * share,
            f"{share:.0%} of what the last {len(steps)} steps computed was padding; buckets {', '.join(buckets[:6])}",
            "set decode_buckets and prefill_buckets to the sizes that occur: jaxserve buckets finds them",
        )  # fmt: skip
    told = [s for s in steps if s["predicted_s"] > 0.0]
    if len(told) >= 20:
        ratio = sum(s["seconds"] for s in told) / sum(s["predicted_s"] for s in told)
        late = [s for s in told if s["seconds"] > 4 * s["predicted_s"] and s["seconds"] - s["predicted_s"] > LEAST_S]
        lost = sum(s["seconds"] - s["predicted_s"] for s in late)
        if lost > 0.2 * sum(s["seconds"] for s in told) or ratio > SLOW:
            yield Finding(
                Cause.SLOW_STEPS, worked * (1 - 1 / max(ratio, 1.001)),
                f"the last {len(told)} steps took {ratio:.1f} times what the cost model had learnt to expect; "
                f"{len(late)} of them took over 4 times",
                "the device or the host is slower than it was: look for other processes, a lower clock, throttling; "
                "POST /debug/profile shows a step",
            )  # fmt: skip


def _recompilation(view: Mapping[str, Any]) -> Iterable[Finding]:
    if count := view["compilations_after_warmup"]:
        longest = max((s["seconds"] for s in view["steps"]), default=0.0)
        yield Finding(
            Cause.RECOMPILATION, longest,
            f"{count} programs were compiled while serving; the longest of the last steps took {longest:.2f} s",
            "a shape has no bucket: start with --warmup full, and say which settings did it",
        )  # fmt: skip


def _network(round_trip_s: float, server_s: float) -> Iterable[Finding]:
    if round_trip_s >= LEAST_S or server_s >= 2 * LEAST_S:
        yield Finding(
            Cause.NETWORK, round_trip_s + server_s,
            f"an empty call takes {round_trip_s * 1000:.0f} ms from here, and calls spend {server_s * 1000:.0f} ms on "
            "receiving bodies and on readers that do not read",
            "look at the way between: proxies that buffer, distance, TLS without keep-alive, slow readers",
        )  # fmt: skip


def _mid(requests: list[Any], field: str) -> float:
    return median(r[field] for r in requests)
