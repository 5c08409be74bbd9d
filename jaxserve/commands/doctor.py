"""`jaxserve doctor URL`: says why requests are slow, with numbers, and what to change."""

import argparse
import json
import os
import statistics
import time
import urllib.error
import urllib.request
from typing import Any

from jaxserve.core.errors import ConfigError
from jaxserve.metrics.diagnosis import ENOUGH, Finding, diagnose

ADMIN_KEY_VARIABLE = "JAXSERVE_ADMIN_KEY"
PROBES = 9


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="say why a server's requests are slow, and what to change",
        description=f"{__doc__} It reads the last 512 steps and requests that the server keeps. With API keys it "
        f"needs the admin key, from {ADMIN_KEY_VARIABLE}. Exit status 1: a cause was found.",
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
    url = url.rstrip("/")
    _get(f"{url}/health")  # the first call pays for the name and the connection
    times: list[float] = []
    for _ in range(PROBES):
        began = time.perf_counter()
        _get(f"{url}/health")
        times.append(time.perf_counter() - began)
    view = json.loads(_get(f"{url}/dashboard/state"))
    if view.get("model") is None or "requests" not in view:
        raise ConfigError(f"{url} has no engine to ask yet (it is loading, or a step hangs): see {url}/health")
    return diagnose(view, statistics.median(times), _http_s(_get(f"{url}/metrics"))), view


def report(found: list[Finding], view: dict[str, Any]) -> str:
    requests, steps = len(view["requests"]), len(view["steps"])
    lines = [f"{view['model']}: {requests} requests and {steps} steps looked at"]
    if not found:
        few = f" ({requests} requests are few: {ENOUGH} are needed)" if requests < ENOUGH else ""
        lines.append("nothing is wrong" + few)
    for i, finding in enumerate(found, 1):
        lines += [f"{i}. {finding.cause}: {finding.evidence}", f"   -> {finding.advice}"]
    return "\n".join(lines)


def _http_s(metrics: str) -> float:
    """Mean seconds that a request spent on its way in, and its answer on waiting for its reader."""
    spent = 0.0
    for name in ("http_receive_seconds", "http_blocked_seconds"):
        sums = {end: 0.0 for end in ("sum", "count")}
        for line in metrics.splitlines():
            series, _, value = line.rpartition(" ")
            for end in sums:
                if series.split("{")[0].endswith(f"{name}_{end}"):
                    sums[end] += float(value)
        spent += sums["sum"] / sums["count"] if sums["count"] else 0.0
    return spent


def _get(url: str) -> str:
    request = urllib.request.Request(url)
    if key := os.environ.get(ADMIN_KEY_VARIABLE):
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        hint = f"set {ADMIN_KEY_VARIABLE}" if error.code in (401, 403) else "see the server's log"
        raise ConfigError(f"{url} answers {error.code}: {hint}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{url} cannot be reached ({error}): is it http://HOST:PORT of a running server?") from error
