"""Why P99 has gone up: the causes, each with its evidence and its remedy, from a server's own view (`metrics.view`).

A request that missed is slow in its queue, in its prefill or in its decode; the part that the slow requests have more
of than the usual ones is followed to what filled it. A cause is named only with numbers beyond its threshold, all of
one time (`metrics.window`); a server whose slow requests are not much slower than the others, and within their
objectives, has none. Where requests are slow and no cause is beyond its threshold, that is said too.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from jaxserve.metrics import isolation
from jaxserve.metrics.finding import Cause, Finding
from jaxserve.metrics.window import ENOUGH, Window, late, look

SLOW = 2.0
"""A tail this many times the median, where no objective says what is too slow."""
LEAST_S = 0.05
"""A difference of less is no trouble."""
KV_REASONS = ("blocks", "share", "tier")
KV_SHARE = 1 / 3
"""Of the time of the first in line; some of the rest always goes to the step that takes in the one before."""
FEW_STEPS = 20
"""Steps without which nothing is said of them."""
KV_ROOM = 0.9
"""Below this share of the KV blocks in use more sequences find room."""


def diagnose(view: Mapping[str, Any], round_trip_s: float = 0.0, *, local: bool = False) -> list[Finding]:
    """Causes, the heaviest first; none for a healthy server.

    `round_trip_s`: median time of an empty call as its caller sees it. `local`: the caller is on the server's machine.
    """
    window = look(view)
    findings = [*_way(view["http"], round_trip_s, local), *_recompilation(view, window)]
    findings += [*isolation.refusals(view, window), *isolation.failures(view), *isolation.starvation(view)]
    requests = window.requests
    if len(requests) >= ENOUGH:
        findings += isolation.priorities(view, window)
        slow = _slow(requests)
        if slow:
            usual = [r for r in requests if r not in slow] or requests
            findings += [*_queue(view, slow), *_prefill(view, slow, usual), *_preemption(view, slow)]
            findings += _steps(view, window, slow)
            if not findings:
                findings.append(_unexplained(slow, usual))
        findings += isolation.own_objectives(view, window)
    return sorted(findings, key=lambda finding: -finding.weight)


def _slow(requests: list[Any]) -> list[Any]:
    """Those that missed an objective, if that is 1 of 100 or more; without objectives, a tail far from the median."""
    judged = [r for r in requests if r["ttft_slo_s"] is not None or r["tpot_slo_s"] is not None]
    found = [r for r in judged if late(r, "ttft") or late(r, "tpot")]
    if judged:
        return found if len(found) >= max(1, len(judged) // 100) else []
    times = sorted(r["ttft_s"] for r in requests)
    typical, edge = times[len(times) // 2], times[int(0.9 * len(times))]
    if edge < max(SLOW * typical, typical + LEAST_S) and not _all_queue(requests):
        return []
    return [r for r in requests if r["ttft_s"] >= edge]


def _all_queue(requests: list[Any]) -> bool:
    """Even the usual request waits longer than it is worked on."""
    return _mid(requests, "queue_s") > max(LEAST_S, _mid(requests, "prefill_s") + _mid(requests, "decode_s"))


def _queue(view: Mapping[str, Any], slow: list[Any]) -> Iterable[Finding]:
    # who was slow later did not queue too long
    slow = [r for r in slow if r["ttft_slo_s"] is None or late(r, "ttft")]
    if not slow:
        return
    queue, rest = _mid(slow, "queue_s"), _mid(slow, "prefill_s")
    if queue < LEAST_S or queue < rest:
        return
    shares = _held_up_by(view, slow)
    told = f"slow requests ({_whose(slow)}) wait {queue:.2f} s in the queue, of {queue + rest:.2f} s to the first token"
    if shares:
        told += f"; the first in line for {', '.join(f'{reason} ({share:.0%})' for reason, share in shares.items())}"
    told += f"; {view['waiting']} wait now; KV in use now {view['kv']['usage']:.0%}"
    if sum(shares.get(reason, 0.0) for reason in KV_REASONS) >= KV_SHARE:
        capped = [t for t in view["tenants"] if t["kv_max"] < 1.0 and any(r["tenant"] == t["name"] for r in slow)]
        raised = ", ".join(f"{tenant['name']!r} (now {tenant['kv_max']:g})" for tenant in capped)
        yield Finding(
            Cause.KV_PRESSURE, queue, told,
            f"give the pool more room (gpu_memory_utilization, kv_cache_bytes){_or_a_tier(view)}; shorten max_tokens"
            + (f"; raise kv_max of tenant {raised}" if "share" in shares and raised else ""),
        )  # fmt: skip
    else:
        yield Finding(Cause.QUEUEING, queue, told, f"more comes than is served: {_against_a_queue(view, slow)}")


def _against_a_queue(view: Mapping[str, Any], slow: list[Any]) -> str:
    """What is not on yet, or can be raised."""
    settings = view["settings"]
    parts: list[str] = []
    if view["kv"]["usage"] < KV_ROOM:
        parts.append(f"raise max_num_seqs (now {settings['max_num_seqs']}), for which KV has room")
    if settings["admission"] != "slo" and any(r["ttft_slo_s"] is not None for r in slow):
        parts.append("refuse early (--admission slo)")
    if settings["ordering"] != "fair" and sum(bool(t["ended"] or t["waiting"]) for t in view["tenants"]) > 1:
        parts.append(f"weigh tenants (--ordering fair, now {settings['ordering']})")
    return ", ".join([*parts, "add a server" if not parts else "or add a server"])


def _or_a_tier(view: Mapping[str, Any]) -> str:
    return "" if view["kv"]["tiers"] else ", or an offload tier (offload_host_bytes)"


def _held_up_by(view: Mapping[str, Any], slow: list[Any]) -> dict[str, float]:
    """What the first in line waited for, for whom the others wait: shares by reason, the largest first."""
    held: Counter[str] = Counter()
    for request in slow:
        held.update(request["waits"])
    held = held if held.total() else Counter(view["waiting_by_reason"])
    del held["order"]
    return {reason: spent / held.total() for reason, spent in held.most_common() if spent}


def _prefill(view: Mapping[str, Any], slow: list[Any], usual: list[Any]) -> Iterable[Finding]:
    own = _mid(slow, "prefill_s")
    fresh = [r["prompt_tokens"] - r["cached_tokens"] for r in slow]
    normal = [r["prompt_tokens"] - r["cached_tokens"] for r in usual]
    grown = median(fresh) / max(median(normal), 1)
    if grown >= SLOW and own - _mid(usual, "prefill_s") >= LEAST_S / 5 and own > _mid(slow, "queue_s"):
        settings = view["settings"]
        parts = [f"give prefill more of a step (max_num_batched_tokens, now {settings['max_num_batched_tokens']})"]
        if settings.get("enable_prefix_caching") is False:
            parts.append("share prefixes (enable_prefix_caching, now off)")
        if settings["long_prefill_token_threshold"] is None:
            parts.append("keep long prompts from each other (long_prefill_token_threshold)")
        yield Finding(
            Cause.LONG_PROMPTS, own,
            f"slow requests ({_whose(slow)}) have {median(fresh):.0f} prompt tokens to compute, the others "
            f"{median(normal):.0f}; their prefill takes {own:.2f} s against {_mid(usual, 'prefill_s'):.2f} s",
            f"{', '.join(parts)}, or give them a tenant of their own",
        )  # fmt: skip


def _preemption(view: Mapping[str, Any], slow: list[Any]) -> Iterable[Finding]:
    stalled = [r for r in slow if r["preemptions"]]
    if len(stalled) * 4 >= len(slow) and stalled:
        lost = median(r["stalled_s"] for r in stalled)
        settings = view["settings"]
        yield Finding(
            Cause.PREEMPTION, lost * len(stalled) / len(slow),
            f"{len(stalled)} of {len(slow)} slow requests ({_whose(slow)}) were preempted and lost {lost:.2f} s each",
            f"raise watermark (now {settings.get('watermark', 'unknown')}), lower max_num_seqs (now "
            f"{settings['max_num_seqs']}), give the KV pool more room{_or_a_tier(view)}",
        )  # fmt: skip


def _steps(view: Mapping[str, Any], window: Window, slow: list[Any]) -> Iterable[Finding]:
    if window.num_steps < FEW_STEPS:
        return
    padding = window.sum("padding")
    share = padding / max(padding + window.sum("decode_rows") + window.sum("prompt_tokens"), 1)
    worked = _mid(slow, "prefill_s") + _mid(slow, "decode_s")
    if share > 0.6 and worked > _mid(slow, "queue_s"):
        buckets = sorted({s["bucket"] for s in view["steps"]})
        yield Finding(
            Cause.PADDING, worked * share,
            f"{share:.0%} of what {window.num_steps} steps computed was padding; buckets {', '.join(buckets[:6])}",
            "set decode_buckets and prefill_buckets to the sizes that occur: jaxserve buckets finds them",
        )  # fmt: skip
    count, took = window.sum("predicted_steps"), window.sum("measured_s")
    if count >= FEW_STEPS:
        ratio = took / window.sum("predicted_s")
        if window.sum("late_s") > 0.2 * took or ratio > SLOW:
            yield Finding(
                Cause.SLOW_STEPS, worked * (1 - 1 / max(ratio, 1.001)),
                f"{count} steps took {ratio:.1f} times what the cost model had learnt to expect; "
                f"{window.sum('late_steps')} of them took over 4 times",
                "the device or the host is slower than it was: look for other processes, a lower clock, throttling; "
                "POST /debug/profile shows a step",
            )  # fmt: skip


def _recompilation(view: Mapping[str, Any], window: Window) -> Iterable[Finding]:
    if done := window.compilations:
        warmup = view["settings"].get("warmup")
        took = sum(compilation["seconds"] for compilation in done)
        yield Finding(
            Cause.RECOMPILATION, took,
            f"{len(done)} programs were compiled while serving, which took {took:.2f} s; the last of them "
            f"{window.now_s - done[-1]['ended_s']:.0f} s ago",
            "a shape has no program: "
            + ("set the bucket sizes (jaxserve buckets)" if warmup == "full" else "start with --warmup full")
            + ", and report it with the settings that did it",
        )  # fmt: skip


def _way(http: Mapping[str, Any], round_trip_s: float, local: bool) -> Iterable[Finding]:
    """The way between clients and server; on one machine that is no network."""
    server_s = http["receive_s"] + http["blocked_s"]
    far = round_trip_s >= LEAST_S
    if not far and server_s < 2 * LEAST_S:
        return
    told = (
        f"an empty call takes {round_trip_s * 1000:.0f} ms from here, and the last {http['calls']} calls "
        f"({http['local']} from the server's machine) spent {http['receive_s'] * 1000:.0f} ms each on coming in and "
        f"{http['blocked_s'] * 1000:.0f} ms on readers that do not read"
    )
    if local if far else http["local"] == http["calls"]:
        yield Finding(
            Cause.BUSY_HOST, round_trip_s + server_s, told,
            "these calls cross no network: look at the server's machine for other processes, long prompts that are "
            "tokenized, clients that do not read, or a tunnel or proxy behind which the network begins",
        )  # fmt: skip
    else:
        yield Finding(
            Cause.NETWORK, round_trip_s + server_s, told,
            "look at the way between: proxies that buffer, distance, TLS without keep-alive, slow readers",
        )  # fmt: skip


def _unexplained(slow: list[Any], usual: list[Any]) -> Finding:
    parts = [
        f"{part} {_mid(slow, f'{part}_s'):.3f} s against {_mid(usual, f'{part}_s'):.3f} s"
        for part in ("queue", "prefill", "decode")
    ]
    worst = max(slow, key=lambda r: r["queue_s"] + r["prefill_s"] + r["decode_s"])
    return Finding(
        Cause.UNEXPLAINED, 0.0,
        f"{len(slow)} requests ({_whose(slow)}) were slow, and no known cause is beyond its threshold; the median of "
        f"theirs against the others': {', '.join(parts)}",
        "is the objective within what an idle server can do? GET /debug/requests/ID tells where one's time went: "
        f"{worst['id']} was the longest",
    )  # fmt: skip


def _mid(requests: list[Any], field: str) -> float:
    return median(r[field] for r in requests)


def _whose(requests: list[Any]) -> str:
    """How many of which tenant."""
    counts = Counter(request["tenant"] for request in requests)
    return ", ".join(f"{count} of {tenant!r}" for tenant, count in counts.most_common())
