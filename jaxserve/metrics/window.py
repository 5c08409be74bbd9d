"""What the doctor looks at: the last requests that ended, and what the steps and the calls of their time took.

    arrival of the first of them                                   the last one's end      now
    |--- requests, at most five minutes of them, or the last ten ---|                       |
    |--- steps (by second), compilations, calls --------------------------------------------|

A server that has been quiet for an hour is judged by the last minutes in which it was not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ENOUGH = 10
"""Requests without which nothing is said of them."""
LOOK_S = 300.0


@dataclass(frozen=True, slots=True)
class Window:
    """Rows of `metrics.view`. Times in seconds on the engine's clock."""

    begin_s: float
    end_s: float
    """When the last of the requests ended."""
    now_s: float
    requests: list[dict[str, Any]]
    seconds: list[dict[str, Any]]
    """Sums of the steps of a second each."""
    compilations: list[dict[str, Any]]
    """Those of this time; the server may have seen others before."""

    @property
    def num_steps(self) -> int:
        return sum(second["steps"] for second in self.seconds)

    def sum(self, field: str) -> float:
        return sum(second[field] for second in self.seconds)


def look(view: Mapping[str, Any]) -> Window:
    now_s = view["now_s"]
    promised = {tenant["name"]: tenant for tenant in view["tenants"]}
    ended = [
        told | _judged_by(told, promised[told["tenant"]])
        for request in view["requests"]
        if (told := _told(request)) is not None
    ]
    end_s = ended[-1]["ended_s"] if ended else now_s
    recent = [request for request in ended if request["ended_s"] >= end_s - LOOK_S]
    requests = recent if len(recent) >= ENOUGH else ended[-ENOUGH:]
    begin_s = min((_arrival_s(request) for request in requests), default=now_s - LOOK_S)
    return Window(
        begin_s, end_s, now_s, requests,
        seconds=[second for second in view["seconds"] if second["at_s"] >= int(begin_s)],
        compilations=[done for done in view["compilations"] if done["ended_s"] >= begin_s],
    )  # fmt: skip


def _told(request: dict[str, Any]) -> dict[str, Any] | None:
    """Who gave up before its first token waited at least until then: leaving it out would hide the worst of a crowd."""
    if request["ttft_s"] is None:
        return request | {"ttft_s": request["queue_s"] + request["prefill_s"]} if request["reason"] == "abort" else None
    return request if request["reason"] in ("stop", "length") else None


def _judged_by(request: Mapping[str, Any], tenant: Mapping[str, Any]) -> dict[str, Any]:
    """A request is late by the objective that its tenant was promised: its own may be looser, and tighter it is a wish.

    Where nothing was promised it is the objective that the scheduler worked to.
    """
    found: dict[str, Any] = {}
    for name in ("ttft_slo_s", "tpot_slo_s"):
        limits = [limit for limit in (request[name], tenant[name]) if limit is not None]
        found[name] = max(limits, default=None)
    return found


def _arrival_s(request: Mapping[str, Any]) -> float:
    return request["ended_s"] - request["queue_s"] - request["prefill_s"] - request["decode_s"]


def late(request: Mapping[str, Any], kind: str) -> bool:
    """Whether it took longer than the objective that it is judged by. `kind`: ttft or tpot."""
    slo, value = request[f"{kind}_slo_s"], request[f"{kind}_s"]
    return slo is not None and value is not None and value > slo
