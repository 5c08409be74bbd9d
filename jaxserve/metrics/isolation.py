"""What tenants do to each other, or to themselves: refusals, starvation, priorities and objectives beyond their own.

Each finding names the tenants, the numbers, and what to change. Advice depends on the server's settings: what is on
already is not advised.

There is nothing to find about prefixes that another tenant's requests have computed: unless tenants say that they
share prefixes, no request can hit them.
"""

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from jaxserve.metrics.distribution import percentile
from jaxserve.metrics.finding import Cause, Finding
from jaxserve.metrics.window import Window, late

LEAST_REFUSED = 3
REFUSED_SHARE = 0.01
"""Of the requests of a tenant that came."""
REFUSAL_S = 30.0
"""A tenant that is refused altogether is as bad as one that waits so long."""
LEAST_OWN = 3
"""Requests with a priority or an objective of their own, without which nothing is said of these."""
EARLY = 0.5
"""First tokens within this share of the objective are early."""


def refusals(view: Mapping[str, Any], window: Window) -> Iterable[Finding]:
    """One for each reason."""
    by_reason: dict[str, dict[str, int]] = {}
    for row in view["refusals"]:
        counts = by_reason.setdefault(row["reason"], {})
        counts[row["tenant"]] = counts.get(row["tenant"], 0) + row["count"]
    ended = {tenant["name"]: tenant["ended"] for tenant in view["tenants"]}
    for reason, counts in by_reason.items():
        shares = {name: count / (count + ended.get(name, 0)) for name, count in counts.items()}
        if sum(counts.values()) < LEAST_REFUSED or max(shares.values()) < REFUSED_SHARE:
            continue
        most = sorted(counts, key=lambda name: -counts[name])
        told = ", ".join(f"{counts[name]} of tenant {name!r} ({shares[name]:.0%} of what came)" for name in most)
        evidence, advice = _of_reason(reason, most, view, window)
        told = f"refused as {reason}: {told}{evidence}"
        yield Finding(Cause.REFUSALS, REFUSAL_S * max(shares.values()), told, advice)


def _of_reason(reason: str, names: list[str], view: Mapping[str, Any], window: Window) -> tuple[str, str]:
    """(more evidence, advice)"""
    settings = view["settings"]
    tenants = {tenant["name"]: tenant for tenant in view["tenants"]}
    own = [tenants[name] for name in names if name in tenants]
    match reason:
        case "rate_limit":
            advice = f"raise {_limits(own, 'requests_per_s', 'tokens_per_minute')}, or slow these clients down: "
            return "", advice + "their answers say in Retry-After when to come back"
        case "tenant_limit":
            advice = f"raise {_limits(own, 'max_waiting', 'max_concurrent')} if their requests may wait longer, or "
            return "", advice + "serve more (see the other findings)"
        case "queue_full":
            return _of_a_full_queue(own, tenants, settings)
        case "slo":
            return _of_slo(own, tenants, window)
        case "max_open_requests":
            return "", (
                f"raise max_open_requests (now {settings.get('max_open_requests')}) if the host has memory for more, "
                "or have clients open fewer at a time"
            )
        case "drain":
            return "", "the server is shutting down: send requests to another one; a balancer learns it from /ready"
        case "starting":
            return "", "these came before the model was loaded: a balancer learns from /ready when to send"
        case _:
            return "", "see docs/reliability.md for what bounds requests"


def _limits(tenants: Iterable[Mapping[str, Any]], *fields: str) -> str:
    """The limits that tenants have, by name and value."""
    found = [
        f"{field} of tenant {tenant['name']!r} (now {tenant[field]:g})"
        for tenant in tenants
        for field in fields
        if tenant.get(field) is not None
    ]
    return ", ".join(found) or f"{' or '.join(fields)} of the tenant"


def _of_a_full_queue(
    own: list[Any], tenants: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]
) -> tuple[str, str]:
    bounds = [f"max_waiting (now {settings['max_waiting']})"]
    if settings.get("max_waiting_tokens") is not None:
        bounds.append(f"max_waiting_tokens (now {settings['max_waiting_tokens']})")
    limited = [tenant for tenant in own if tenant["max_waiting"] is not None]
    if limited:
        bounds.insert(0, _limits(limited, "max_waiting"))
    longest = max(tenants.values(), key=lambda tenant: tenant["waiting"])
    evidence, advice = "", "more comes than is served: serve more (see the other findings), or add a server; "
    if longest["waiting"]:
        evidence = f"; now {longest['waiting']} of tenant {longest['name']!r} wait"
    others = [tenant for tenant in own if tenant is not longest]
    if others and longest["waiting"] and longest["max_waiting"] is None:
        advice += f"keep tenant {longest['name']!r} from filling the queue with a max_waiting of its own; "
    return evidence, advice + f"if requests may wait longer, raise {' or '.join(bounds)}"


def _of_slo(own: list[Any], tenants: Mapping[str, Mapping[str, Any]], window: Window) -> tuple[str, str]:
    """Admission predicted first tokens that would come too late."""
    names = {tenant["name"] for tenant in own}
    let_in = [r for r in window.requests if r["tenant"] in names and r["ttft_slo_s"] and r["ttft_s"] is not None]
    objectives = ", ".join(f"{t['name']!r} {t['ttft_slo_s']:g} s" for t in own if t["ttft_slo_s"] is not None)
    evidence = f"; objectives: {objectives}" if objectives else ""
    early = False
    if let_in:
        tail = percentile([r["ttft_s"] / r["ttft_slo_s"] for r in let_in], 90)
        early = tail < EARLY
        evidence += f"; those that were let in had their first token within {tail:.0%} of the objective (P90)"
    others = [t for t in tenants.values() if t["name"] not in names and (t["ended"] or t["running"])]
    promised = [t for t in own if t["ttft_slo_s"] is not None]
    lower = [t for t in others if t["ttft_slo_s"] is None or any(t["priority"] > p["priority"] for p in promised)]
    parts: list[str] = []
    if lower and promised:
        listed = ", ".join(f"{t['name']!r} {t['ended']}" for t in lower)
        evidence += f"; meanwhile tenants without an objective, or of a lower class, were served: {listed}"
        whose = " and ".join(repr(t["name"]) for t in lower)
        parts.append(f"bound tenant {whose}: requests_per_s, max_waiting, kv_max, or a larger number as its priority")
    if early:
        parts.append("the forecast is too late: find out what slowed the steps down (other processes, throttling)")
    parts.append("serve more, or promise less (ttft_slo_s)")
    return evidence, "; ".join(parts)


def failures(view: Mapping[str, Any]) -> Iterable[Finding]:
    """Calls that ended with an error of the server's."""
    by_error: dict[str, dict[str, int]] = {}
    for row in view["failures"]:
        by_error.setdefault(row["reason"], {})[row["tenant"]] = row["count"]
    ended = {tenant["name"]: tenant["ended"] for tenant in view["tenants"]}
    for error, counts in by_error.items():
        share = max(count / max(count, ended.get(name, 0)) for name, count in counts.items())
        if share < REFUSED_SHARE:
            continue
        told = ", ".join(f"{count} of tenant {name!r}" for name, count in counts.items())
        advice = "the log has each error; docs/operations.md says what helps"
        if error == "DeadlineExceeded":
            advice = "these took longer than their timeout, or request_timeout_s: see the other findings, or allow more"
        yield Finding(Cause.FAILURES, REFUSAL_S * share, f"calls failed with {error}: {told}", advice)


def starvation(view: Mapping[str, Any]) -> Iterable[Finding]:
    tenants = {tenant["name"]: tenant for tenant in view["tenants"]}
    for tenant in tenants.values():
        starved = tenant["starved"]
        if starved is None:
            continue
        most = tenants[starved["most"]]
        told = (
            f"tenant {tenant['name']!r} had requests waiting for {starved['seconds']} s and got {starved['got']:.0%} "
            f"of the service, where its weight ({tenant['weight']:g}) gives it {starved['due']:.0%}; tenant "
            f"{most['name']!r} got the most"
        )
        if tenant["waits_s"] is not None:
            told += (
                f"; now {tenant['waiting']} wait, the first for {tenant['waits_s']:.1f} s, for {tenant['waits_for']}, "
                f"and {tenant['running']} run beside {most['running']} of tenant {most['name']!r}"
            )
        yield Finding(Cause.STARVATION, starved["seconds"], told, _for_the_starved(tenant, most, view["settings"]))


def _for_the_starved(tenant: Mapping[str, Any], most: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    name, other, ordering = repr(tenant["name"]), repr(most["name"]), settings["ordering"]
    if tenant["waits_for"] == "share":
        return f"tenant {name} is at its share of the KV blocks: raise its kv_max (now {tenant['kv_max']:g})"
    parts: list[str] = []
    if ordering == "priority" and tenant["priority"] > most["priority"]:
        parts.append(
            f"its class ({tenant['priority']}) goes behind that of {other} ({most['priority']}), as configured: give "
            f"both one class, lower priority_ageing_s (now {settings['priority_ageing_s']:g}), or share by weight "
            "(--ordering fair)"
        )
    elif ordering != "fair":
        parts.append(f"share by weight (--ordering fair; now {ordering})")
    else:
        parts.append(f"requests of {other} hold the slots or the KV blocks until they end")
    if not settings["preempt_for_admission"]:
        return "; ".join([*parts, "let it take its share back (preempt_for_admission, now off)"])
    parts.append(
        f"give tenant {name} a kv_guaranteed (now {tenant['kv_guaranteed']:g}), which preempts others for it, or "
        f"tenant {other} a smaller kv_max (now {most['kv_max']:g})"
    )
    return "; ".join(parts)


def priorities(view: Mapping[str, Any], window: Window) -> Iterable[Finding]:
    """Requests that asked for a smaller priority than their tenant's class."""
    for tenant in view["tenants"]:
        name, its_class = tenant["name"], tenant["priority"]
        own = [r for r in window.requests if r["tenant"] == name]
        asked = [r for r in own if r["asked_priority"] is not None and r["asked_priority"] < its_class]
        if len(asked) < LEAST_OWN or len(view["tenants"]) < 2:
            continue
        lowest = min(r["asked_priority"] for r in asked)
        raised = [r for r in asked if r["priority"] < its_class]
        told = f"{len(asked)} of {len(own)} requests of tenant {name!r} asked for a priority down to {lowest}; "
        if raised:
            told += f"{len(raised)} of them went before its class ({its_class}), and so before other tenants"
            beaten = [repr(t["name"]) for t in view["tenants"] if t["name"] != name and t["priority"] >= lowest]
            told += f", at the cost of {', '.join(beaten)}" if beaten else ""
            advice = f"set may_raise_priority = false for tenant {name!r}, or its class to what it may have"
        else:
            told += f"none went before its class ({its_class}): other tenants lose nothing"
            advice = f"have its clients leave priority out, or let them (may_raise_priority = true for tenant {name!r})"
        weight = _mean_wait(window, name) if raised and view["settings"]["ordering"] == "priority" else 0.0
        yield Finding(Cause.RAISED_PRIORITIES, weight, told, advice)


def _mean_wait(window: Window, apart_from: str) -> float:
    """Seconds that the others' requests were queued, in the middle."""
    return median([r["queue_s"] for r in window.requests if r["tenant"] != apart_from] or [0.0])


def own_objectives(view: Mapping[str, Any], window: Window) -> Iterable[Finding]:
    """Requests that missed an objective of their own, while that of their tenant was met."""
    for tenant in view["tenants"]:
        for kind in ("ttft", "tpot"):
            own = [r for r in window.requests if r["tenant"] == tenant["name"] and r[f"{kind}_s"] is not None]
            asked = [r for r in own if r[f"asked_{kind}_slo_s"] is not None]
            missed = [r for r in asked if r[f"{kind}_s"] > r[f"asked_{kind}_slo_s"] and not late(r, kind)]
            if len(missed) < LEAST_OWN:
                continue
            tightest, promised = min(r[f"asked_{kind}_slo_s"] for r in missed), tenant[f"{kind}_slo_s"]
            met = "the tenant was promised none"
            if promised is not None:
                met = f"what the tenant was promised, {promised:g} s, was met"
            yield Finding(
                Cause.OWN_OBJECTIVES, 0.0,
                f"{len(missed)} of {len(asked)} requests of tenant {tenant['name']!r} that brought a {kind}_slo_s of "
                f"their own (down to {tightest:g} s) missed it; {met}",
                f"nothing has to change here: have the clients leave {kind}_slo_s out, or ask for what is usual "
                f"({percentile([r[f'{kind}_s'] for r in own], 50):.3g} s in the middle)",
            )  # fmt: skip
