"""What the server knows of itself: it counts its own answers, and reads them and the engine's counts for a scrape.

Gauges are asked of the engine between two of its steps. While a step takes longer than a scrape may wait, the last
reading stands in for them; counters are always current.
"""

import dataclasses
import time
from collections import deque
from contextlib import suppress
from typing import Any, NamedTuple

from prometheus_client import GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.registry import CollectorRegistry

from jaxserve import __version__
from jaxserve.core.errors import EngineStopped
from jaxserve.core.server_sections import ServerConfig
from jaxserve.metrics.by_second import BySecond
from jaxserve.metrics.catalog import BOUNDS
from jaxserve.metrics.counts import Counts
from jaxserve.metrics.prometheus import Exporter, Reading, render
from jaxserve.metrics.snapshot import Snapshot
from jaxserve.metrics.view import WINDOW_S, Seen, refusals
from jaxserve.metrics.window import LOOK_S
from jaxserve.server.context import Call
from jaxserve.server.service import Service

PATIENCE_S = 1.0
"""How long a scrape waits for the step under way."""
CALLS = 512
NO_FAILURES = ("NotServing", "ReaderTooSlow")
"""Errors that are no fault of the server: a refusal, which is counted as such, and a client that does not read."""


class CallFact(NamedTuple):
    """What the way to and from its client took of a call. Seconds on the machine's monotonic clock."""

    ended_s: float
    receive_s: float
    blocked_s: float
    local: bool = False
    """Its client is on this machine."""


class Telemetry:
    """One writer: the event loop."""

    def __init__(self, config: ServerConfig) -> None:
        self._prefix, self._max_open_requests = config.metrics_prefix, config.max_open_requests
        self._http = Counts(BOUNDS)
        self._snapshot = Snapshot()
        self._service: Service | None = None
        self._open_calls = self._open_lines = 0
        self._calls: deque[CallFact] = deque(maxlen=CALLS)
        self._refused = BySecond()
        """Calls by (tenant, reason), those that the engine was not asked for."""
        self._failed = BySecond()
        """Calls by (tenant, error), likewise all."""
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)

    def watch(self, service: Service) -> None:
        """Scrapes and views show this service's engine from now on."""
        self._service = service
        self._registry.register(Exporter(self._prefix, service.model_name, self._read))

    def refused(self, reason: str, tenant: str) -> None:
        """The engine was not asked for it."""
        self._http.add("admission_rejections", labels=(reason,))
        self._refused.add((tenant, reason), time.monotonic())

    def answered(self, route: str, status: int, call: Call) -> None:
        """A call has ended. `status` 0: it was cut before it had one."""
        self._http.add("http_requests", labels=(route, str(status)))
        if call.failure is not None and call.failure not in NO_FAILURES and (status >= 500 or status == 200):
            self._failed.add((call.tenant, call.failure), time.monotonic())
        if call.received_s is not None:
            receive_s = call.received_s - call.began_s
            self._http.observe("http_receive_seconds", receive_s)
            self._http.observe("http_blocked_seconds", call.blocked_s)
            self._calls.append(CallFact(time.monotonic(), receive_s, call.blocked_s, call.local))

    def line_ended(self, endpoint: str, status: int) -> None:
        """A line of a batch has its result."""
        self._http.add("batch_lines", labels=(endpoint, str(status)))

    async def scrape(self, accept: str, open_calls: int, open_lines: int = 0) -> tuple[bytes, str]:
        """(body, content type). `open_lines`: lines of batches that run."""
        self._open_calls, self._open_lines = open_calls, open_lines
        if self._service is not None:
            with suppress(TimeoutError, EngineStopped):  # a long step, or none any more: step_age_seconds tells
                self._snapshot = await self._service.client.snapshot(PATIENCE_S)
        return render(self._registry, accept)

    async def view(self, seen: Seen) -> tuple[dict[str, Any], Seen]:
        """(what the dashboard shows, what its reader will have seen); of the last moment that could be asked for."""
        if self._service is None:
            return {"model": None}, seen
        service, client = self._service, self._service.client
        compilations = client.compilations
        about = {
            "model": service.model_name,
            "version": __version__,
            "uptime_s": time.time() - service.created,
            "max_num_seqs": service.facts.max_num_seqs,
            "max_num_batched_tokens": service.facts.max_num_batched_tokens,
            "compilations_after_warmup": compilations.after_warmup,
            "compilations": [done._asdict() for done in compilations.last],
            "http": self._lately(),
            "step_age_s": client.step_age_s,
            "alive": client.alive,
        }
        try:
            content, seen = await client.view(seen, PATIENCE_S)
        except (TimeoutError, EngineStopped):
            return about, seen
        self._add_own(content)
        return about | content, seen

    def _add_own(self, content: dict[str, Any]) -> None:
        """What the engine does not know of: refusals before it, failures of calls, the server's settings."""
        now = time.monotonic()
        first_view = "settings" in content
        begin_s, lately_s = now - (LOOK_S if first_view else WINDOW_S), now - WINDOW_S
        content["refusals"] += refusals(self._refused, begin_s, lately_s)
        content["failures"] = refusals(self._failed, begin_s, lately_s)
        for second in content["seconds"]:
            second["refused"] += self._refused.at(second["at_s"])
            second["failed"] = self._failed.at(second["at_s"])
        if first_view and self._service is not None:
            content["settings"] |= {"max_open_requests": self._max_open_requests, **self._service.settings}

    def _lately(self) -> dict[str, Any]:
        """Means of the calls that ended in the last minutes; 0 of none."""
        calls = [call for call in self._calls if call.ended_s >= time.monotonic() - LOOK_S]
        count = len(calls)
        return {
            "calls": count,
            "local": sum(call.local for call in calls),
            "receive_s": sum(call.receive_s for call in calls) / max(count, 1),
            "blocked_s": sum(call.blocked_s for call in calls) / max(count, 1),
        }

    def _read(self) -> Reading:
        service = self._service
        assert service is not None
        client, facts = service.client, service.facts
        return Reading(
            counts=(client.counts, self._http),
            snapshot=self._snapshot,
            tenants=facts.tenants,
            block_bytes=facts.block_bytes,
            compilations_after_warmup=client.compilations.after_warmup,
            engine_up=client.failure is None,
            step_age_s=client.step_age_s,
            open_calls=self._open_calls,
            open_lines=self._open_lines,
            cache_info=_cache_info(service),
        )


def _cache_info(service: Service) -> dict[str, str]:
    """vLLM's label names are its settings' names, and so are these."""
    settings: dict[str, Any] = dataclasses.asdict(service.cache) if service.cache else {}
    shown = settings | {"block_size": service.facts.block_size, "num_gpu_blocks": service.facts.num_blocks}
    return {name: str(value) for name, value in shown.items() if name != "offload_disk_dir"}
