"""A server's life: listen, load, serve, drain, exit.

It listens before the model is loaded: `/health` answers, `/ready` and the rest 503 until all programs are compiled.
SIGTERM (or Ctrl-C): nothing new is taken, what runs is finished, or after `drain_timeout_s` fails; exit 0.
A second signal ends the process at once.
"""

import asyncio
import gc
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, cast

import uvicorn
from starlette.applications import Starlette

from jaxserve.batches.store import Store
from jaxserve.core.errors import ConfigError, EngineStopped
from jaxserve.core.server_sections import BatchConfig, ServerConfig
from jaxserve.engine.loop import EngineLoop
from jaxserve.server import log
from jaxserve.server.app import create_app, open_service
from jaxserve.server.batches import Batches
from jaxserve.server.connection import Connection
from jaxserve.server.keys import Keys
from jaxserve.server.service import Service
from jaxserve.server.state import ServerState
from jaxserve.server.traces import open_traces
from jaxserve.server.watchdog import Watchdog

if TYPE_CHECKING:
    from jaxserve.llm import LLM

MakeService = Callable[[], Service]
FLUSH_S = 5.0
"""After the drain: how long answers that are complete may take to leave."""


def serve(load: MakeService, config: ServerConfig, batches: BatchConfig, keys: Keys) -> int:
    """Serve what `load` makes until a signal; returns the exit status. `load` runs on a thread of its own.

    Raises:
      ConfigError: certificates, addresses or the batches' folder cannot be used. Whatever `load` raises.
    """
    log.set_up(config.log_level)
    kept = None
    if batches.batch_dir is not None:
        kept = Batches(Store(batches.batch_dir, batches.batch_store_bytes, keys.tenants), batches)
    loader = Loader(load)
    traces = open_traces(config.otlp_traces_endpoint)
    sock = bind(config)
    app = create_app(config=config, keys=keys, kept=kept, traces=traces, on_start=loader.begin)
    server = Server(app, config)
    loader.attach(app, server)
    server.run(sockets=[sock])
    if loader.alive:  # a compiler thread cannot be stopped, and must not see the interpreter go away
        sys.stderr.flush()
        os._exit(server.exit_code)
    if loader.error is not None:
        raise loader.error
    return server.exit_code


def service_of(llm: "LLM", config: ServerConfig) -> Service:
    """An `LLM` as the routes see it: the one place where the server meets an engine of its own process."""
    from jaxserve.runtime import profile  # JAX: this module must be importable before the model is loaded

    return Service(
        EngineLoop(llm.engine, device=llm.runner, profiler=profile),
        llm.make_request,
        llm.tokenizer,
        llm.model_name,
        config,
        cache=llm.config.cache,
        settings={
            "enable_prefix_caching": llm.config.cache.enable_prefix_caching,
            "watermark": llm.config.cache.watermark,
            "warmup": llm.config.runtime.warmup,
        },
        sampling_defaults=llm.sampling_defaults,
    )


def bind(config: ServerConfig) -> socket.socket:
    """A listening socket. Raises ConfigError with what to change."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {config.host}, port {config.port} ({error.strerror}): give another --host or --port"
        ) from error


class Server(uvicorn.Server):
    """uvicorn's server, which drains before it shuts down, and looks after its connections."""

    def __init__(self, app: Starlette, limits: ServerConfig) -> None:
        self._limits = limits
        self._state: ServerState = app.state.server
        self._watchdog = Watchdog(self._state)
        self._drain_until: float | None = None
        self._signal: str | None = None
        self.exit_code = 0
        config = uvicorn.Config(
            app,
            http=cast("type[asyncio.Protocol]", partial(Connection, limits=limits)),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=int(limits.keep_alive_s) or 1,
            timeout_graceful_shutdown=int(FLUSH_S),
            ssl_certfile=limits.ssl_certfile,
            ssl_keyfile=limits.ssl_keyfile,
            ssl_ca_certs=limits.ssl_ca_certs,
            ssl_cert_reqs=ssl.CERT_REQUIRED if limits.ssl_ca_certs else ssl.CERT_NONE,
        )
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"ssl_certfile, ssl_keyfile or ssl_ca_certs cannot be used: {error}") from error
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A first signal drains; a second one is obeyed at once."""
        if self._drain_until is not None or self._state.phase == "starting":
            sys.stderr.flush()
            os._exit(0 if self._drain_until is None else 128 + sig)
        self._drain_until = time.monotonic() + self._limits.drain_timeout_s
        self._state.drain()
        self._signal = signal.Signals(sig).name  # told by the next tick: a handler must not write to a busy stream

    async def on_tick(self, counter: int) -> bool:
        """uvicorn calls this ten times a second."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection):
                    connection.sweep(now)
            self._watchdog.look()
        if self._signal is not None:
            log.logger.info("draining", extra={"fields": {"signal": self._signal, "open": self._state.open_calls}})
            self._signal = None
        if self._drain_until is not None and not self.should_exit:
            if self._state.open_calls and time.monotonic() > self._drain_until and self._state.service is not None:
                self._state.service.client.fail_open(EngineStopped("the server is shutting down"))
                await asyncio.sleep(0.2)  # long enough for the errors to be told
                self.should_exit = True
            elif not self._state.open_calls:
                self.should_exit = True
        return await super().on_tick(counter)


def settle_heap() -> None:
    """Let the garbage collector skip everything that is alive now: modules, programs, the tokenizer, the engine.

    A full collection stops every thread, in the middle of a step: with the 218,000 objects of an engine that has just
    loaded it took 105 ms (2 cores of an EPYC), with those frozen under a millisecond. For a process that keeps its
    engine: a cycle that is frozen while it lives is never freed after it.
    """
    gc.collect()
    gc.freeze()


class Loader:
    """Loads the model on a thread while the server already answers."""

    def __init__(self, load: MakeService) -> None:
        self._load = load
        self._thread = threading.Thread(target=self._run, name="jaxserve-load", daemon=True)
        self.error: Exception | None = None

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def attach(self, app: Starlette, server: Server) -> None:
        """Who is given the service, and who is stopped if there is none."""
        self._app, self._server = app, server

    def begin(self) -> None:
        """On the event loop that will take the service."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def _run(self) -> None:
        try:
            service = self._load()
            settle_heap()
            asyncio.run_coroutine_threadsafe(open_service(self._app, service), self._loop).result()
        except Exception as error:
            self.error = error
            self._server.exit_code = 2
            self._server.should_exit = True
