"""Where the server is in its life, and how much it has taken on.

starting --model loaded, programs compiled--> ready --SIGTERM--> draining --nothing runs, or time is up--> exit
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from jaxserve.core.errors import EngineStopped
from jaxserve.core.places import Places
from jaxserve.core.server_sections import ServerConfig
from jaxserve.core.tenants import DEFAULT
from jaxserve.server.errors import NotServing, TooManyRequests
from jaxserve.server.service import Service
from jaxserve.server.telemetry import Telemetry

Phase = Literal["starting", "ready", "draining"]


class ServerState:
    """One writer: the event loop."""

    def __init__(self, config: ServerConfig, tenants: Sequence[str] = ()) -> None:
        """`tenants`: those that have keys; without any, all calls are one tenant's."""
        self.config = config
        self.phase: Phase = "starting"
        self.service: Service | None = None
        self.telemetry = Telemetry(config)
        self.open_calls = 0
        """Calls that may make work, from their first byte to their last."""
        self._open: Counter[str] = Counter()
        self._places = Places(config.max_open_requests, dict.fromkeys(tenants or (DEFAULT,), 1.0))

    def open(self, service: Service) -> None:
        """The model is there. Starts its engine's thread, unless the server is already on its way out."""
        self.service = service
        self.telemetry.watch(service)
        service.client.start()
        if self.phase == "starting":
            self.phase = "ready"

    def drain(self) -> None:
        """Take nothing new; what runs goes on."""
        self.phase = "draining"

    def call_began(self, tenant: str) -> None:
        """Count a call that `check_admission` let in, or that needs no place."""
        self.open_calls += 1
        self._open[tenant] += 1

    def call_ended(self, tenant: str) -> None:
        self.open_calls -= 1
        self._open[tenant] -= 1

    def check_admission(self, tenant: str) -> None:
        """Raises NotServing, EngineStopped or TooManyRequests if a call that makes work cannot be taken now.

        Tenants share `max_open_requests` as `core.places` says.
        """
        if self.phase == "starting":
            self.telemetry.refused("starting", tenant)
            raise NotServing("the model is still loading: try again, or ask /ready", 5.0)
        if self.phase == "draining":
            self.telemetry.refused("drain", tenant)
            raise NotServing("the server is shutting down and takes nothing new: try another", 1.0)
        if trouble := self.trouble():
            raise EngineStopped(trouble)
        limit = self.config.max_open_requests
        if not self._places.have_room(tenant, 1, self._open.__getitem__, self.open_calls):
            self.telemetry.refused("max_open_requests", tenant)
            raise TooManyRequests(f"{limit} requests are open, which is the bound (max_open_requests): try again later")

    def trouble(self) -> str | None:
        """What keeps the engine from serving, in a sentence."""
        if self.service is None:
            return None
        client = self.service.client
        if not client.alive:
            return f"the engine has stopped: {client.failure or 'it was told to'}"
        if client.step_age_s > self.config.watchdog_s:
            return f"a step has been running for {client.step_age_s:.0f} s: the device may hang"
        return None
