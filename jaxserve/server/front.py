"""What every call passes: a request id, an API key, the bounds on open work, an error's shape, a line in the log.

Written as plain ASGI: a stream's events pass one thin function more, and nothing is buffered.
"""

import ipaddress
import re
import time
import uuid
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxserve.server.body import Incoming
from jaxserve.server.context import Call
from jaxserve.server.dashboard.routes import FEED_PATHS, PAGE_PATHS
from jaxserve.server.errors import CLIENT_CLOSED_REQUEST, ClientLeft, NotAllowed, error_response
from jaxserve.server.keys import ADMIN_KEY_VARIABLE, Keys
from jaxserve.server.log import logger
from jaxserve.server.state import ServerState
from jaxserve.server.traces import RequestTraces

OPEN_PATHS = frozenset({"/health", "/ready", "/version", "/metrics", "/openapi.json"}) | PAGE_PATHS
"""Asked without a key: probes, scrapers, whoever wants to know how to ask, and the dashboard's empty page."""
ADMIN_PREFIXES = ("/admin", "/debug")
_GOOD_ID = re.compile(r"[\w.:@/+=-]{1,128}", re.ASCII)


class Front:
    """The outermost layer but Starlette's own."""

    def __init__(self, app: ASGIApp, state: ServerState, keys: Keys, traces: RequestTraces | None = None) -> None:
        self._app, self._state, self._keys, self._traces = app, state, keys, traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers: dict[bytes, bytes] = dict(scope["headers"])
        call = Call(_request_id(headers.get(b"x-request-id")), local=_is_local(scope))
        scope.setdefault("state", {})["call"] = call
        works = scope["method"] == "POST"  # or may, as far as can be said before it is read
        incoming = Incoming(receive)
        counted: str | None = None
        status = 0
        id_header = (b"x-request-id", call.request_id.encode())

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status >= 400 and works and b"expect" not in headers:
                    await incoming.drop_rest(2 * self._state.config.max_body_bytes)
                message["headers"] = [*message.get("headers", ()), id_header]
            began_s = time.monotonic()
            await send(message)
            call.blocked_s += time.monotonic() - began_s

        try:
            self._authorize(scope["path"], headers, call)
            if works and not call.admin:  # a profile is wanted just when too much is open
                self._state.check_admission(call.tenant)
                counted = call.tenant  # a body may name another one later
                self._state.call_began(counted)
            elif self._state.service is None and scope["path"] not in OPEN_PATHS | FEED_PATHS:
                self._state.check_admission(call.tenant)
            await self._app(scope, incoming, send_with_id)
        except ClientLeft:
            status = CLIENT_CLOSED_REQUEST
            call.aborted()
        except Exception as error:
            call.failure = type(error).__name__
            if not status:
                response = error_response(error)
                await response(scope, incoming, send_with_id)
            if status >= 500 and not hasattr(error, "retry_after_s"):
                logger.error("request failed", exc_info=error, extra={"fields": {"request_id": call.request_id}})
        finally:
            if counted is not None:
                self._state.call_ended(counted)
            self._state.telemetry.answered(_route(scope), status, call)
            if self._traces is not None:
                model = self._state.service and self._state.service.model_name
                call.trace_id = self._traces.ended(call, scope, status, model)
            self._log(scope, call, status)

    def _authorize(self, path: str, headers: dict[bytes, bytes], call: Call) -> None:
        """Raises BadKey or NotAllowed."""
        given = headers.get(b"authorization")
        authorization = None if given is None else given.decode("latin-1")
        guarded = self._keys.has_admin or self._keys.required
        if path.startswith(ADMIN_PREFIXES) or (path in FEED_PATHS and guarded):
            if not self._keys.has_admin:
                raise NotAllowed(
                    f"admin routes are closed: start the server with {ADMIN_KEY_VARIABLE} or admin_key_file"
                )
            if not self._keys.is_admin(authorization):
                raise NotAllowed("this needs the admin key: send Authorization: Bearer KEY")
            call.admin = True
        elif path not in OPEN_PATHS | FEED_PATHS:
            call.tenant = self._keys.tenant_of(authorization)
            call.tenant_by = "this API key" if self._keys.required else None

    def _log(self, scope: Scope, call: Call, status: int) -> None:
        if scope["path"] in OPEN_PATHS | FEED_PATHS:
            return
        fields: dict[str, Any] = {
            "request_id": call.request_id,
            "tenant": call.tenant,
            "method": scope["method"],
            "path": scope["path"],
        }
        fields |= call.log_fields(status)
        logger.info("request", extra={"fields": fields})


def _route(scope: Scope) -> str:
    """The path as the routing table has it: a bounded number of names."""
    return getattr(scope.get("route"), "path", "none")


def _is_local(scope: Scope) -> bool:
    """Whether the client is on this machine; a proxy beside the server is, too."""
    host = (scope.get("client") or ("",))[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _request_id(given: bytes | None) -> str:
    """The caller's own, if it can stand in a header and a log line; else a new one."""
    text = "" if given is None else given.decode("latin-1")
    return text if _GOOD_ID.fullmatch(text) else f"req-{uuid.uuid4().hex}"
