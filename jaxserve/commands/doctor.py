"""`jaxserve doctor URL`: says why requests are slow or refused, with numbers, and what to change."""

import argparse
import ipaddress
import json
import os
import statistics
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from jaxserve.commands.server_url import server_url
from jaxserve.core.errors import ConfigError
from jaxserve.metrics.diagnosis import diagnose
from jaxserve.metrics.distribution import percentile
from jaxserve.metrics.finding import Finding
from jaxserve.metrics.window import ENOUGH, Window, late, look

ADMIN_KEY_VARIABLE = "JAXSERVE_ADMIN_KEY"
PROBES = 9


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="say why a server's requests are slow or refused, and what to change",
        description=f"{__doc__} It looks at the last five minutes in which requests ended, of the last 512 that the "
        f"server keeps. With API keys it needs the admin key, from {ADMIN_KEY_VARIABLE}. Exit status 0: nothing is "
        "wrong; 1: a cause was found, or requests are slow without one; 2: there was nothing to ask.",
    )
    parser.add_argument("url", help="http://HOST:PORT of a running server")
    parser.add_argument("--json", action="store_true", help="findings as JSON")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    found, view = examine(given.url)
    if given.json:
        print(json.dumps([{"cause": f.cause, "evidence": f.evidence, "advice": f.advice} for f in found], indent=1))
    else:
        print(report(found, view))
    return 1 if found else 0


def examine(url: str) -> tuple[list[Finding], dict[str, Any]]:
    """(findings, the view they come from). Raises ConfigError if there is nothing to ask."""
    url = server_url(url)
    _get(f"{url}/health")  # the first call pays for the name and the connection
    times: list[float] = []
    for _ in range(PROBES):
        began = time.perf_counter()
        _get(f"{url}/health")
        times.append(time.perf_counter() - began)
    view = json.loads(_get(f"{url}/dashboard/state"))
    if view.get("model") is None:
        raise ConfigError(f"{url} is still loading its model: ask again when {url}/ready says so")
    if "requests" not in view:
        raise ConfigError(f"{url} has a step that has been running for {view['step_age_s']:.0f} s: see {url}/health")
    return diagnose(view, statistics.median(times), local=_is_local(url)), view


def report(found: list[Finding], view: dict[str, Any]) -> str:
    window = look(view)
    requests = len(window.requests)
    lines = [
        f"{view['model']}: {requests} requests and {window.num_steps} steps looked at, from "
        f"{window.now_s - window.begin_s:.0f} s to {window.now_s - window.end_s:.0f} s ago",
        *(line for tenant in view["tenants"] if (line := _tenant(tenant["name"], window, view))),
        _now(view),
    ]
    if not found:
        lines.append("nothing is wrong" if requests >= ENOUGH else f"of fewer than {ENOUGH} requests nothing is said")
    if before := view["compilations_after_warmup"] - len(window.compilations):
        lines.append(f"before that time, {before} programs were compiled while serving")
    for i, finding in enumerate(found, 1):
        lines += [f"{i}. {finding.cause}: {finding.evidence}", f"   -> {finding.advice}"]
    return "\n".join(lines)


def _tenant(name: str, window: Window, view: dict[str, Any]) -> str:
    """What its requests took, against what it was promised, and how many were refused; empty: none came."""
    own = [request for request in window.requests if request["tenant"] == name]
    told = f"  {name}: {len(own)} requests"
    for kind in ("ttft", "tpot"):
        times = [request[f"{kind}_s"] for request in own if request[f"{kind}_s"] is not None]
        if times:
            told += f"; {kind.upper()} P50 {percentile(times, 50):.3f} s, P99 {percentile(times, 99):.3f} s"
        objective = own[-1][f"{kind}_slo_s"] if own else None
        if objective is not None:
            told += f", objective {objective:g} s: missed by {sum(late(request, kind) for request in own)}"
    for what in ("refusals", "failures"):
        counts = {row["reason"]: row["count"] for row in view[what] if row["tenant"] == name}
        if counts:
            listed = ", ".join(f"{reason} {counts[reason]}" for reason in sorted(counts, key=lambda r: -counts[r]))
            told += f"; {sum(counts.values())} {'refused' if what == 'refusals' else 'failed'} ({listed})"
    return told if told != f"  {name}: 0 requests" else ""


def _now(view: dict[str, Any]) -> str:
    told = f"  now: {view['running']} run, {view['waiting']} wait"
    waits = [live for live in view["live"] if live["waits_for"] is not None]
    first = next((live for live in waits if live["waits_for"] != "order"), waits[0] if waits else None)
    return told + (f", the first for {first['age_s']:.1f} s, for {first['waits_for']}" if first else "")


def _is_local(url: str) -> bool:
    """Whether the address is this machine's own; a tunnel may still lead elsewhere."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _get(url: str) -> str:
    request = urllib.request.Request(url)
    if key := os.environ.get(ADMIN_KEY_VARIABLE):
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        hint = f"set {ADMIN_KEY_VARIABLE}" if error.code in (401, 403) else _status(error) or "see the server's log"
        raise ConfigError(f"{url} answers {error.code}: {hint}") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)  # of URLError
        raise ConfigError(f"{url} cannot be reached ({why}): is it http://HOST:PORT of a running server?") from error


def _status(error: urllib.error.HTTPError) -> str:
    """What /health says of the engine."""
    try:
        return str(json.loads(error.read())["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
