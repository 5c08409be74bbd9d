"""The sections of the configuration that only `jaxserve serve` heeds: the HTTP side, and batch jobs."""

import re
from dataclasses import dataclass
from typing import Literal

from jaxserve.core.settings import require, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The HTTP side."""

    host: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(8000, "port to listen on")
    api_keys_file: str | None = setting(None, 'TOML file, tenant = "key" a line; none: no key is asked for')
    admin_key_file: str | None = setting(None, "file with the key of the admin routes; none: they are closed")
    cors_origins: str | None = setting(None, "origins whose pages may call, separated by commas; none: no page may")
    max_body_bytes: int = setting(4 << 20, "largest request body")
    max_header_bytes: int = setting(32 << 10, "largest request line and headers together")
    max_connections: int = setting(4096, "most open connections; one more is closed with 503")
    max_open_requests: int = setting(2048, "most requests under way or waiting; one more is refused with 429")
    max_stream_backlog: int = setting(4096, "tokens a stream's reader may fall behind before it is cut")
    receive_timeout_s: float = setting(
        30.0, "longest time for a request's headers and body to come in; for each max_body_bytes of uploads"
    )
    write_timeout_s: float = setting(30.0, "longest time that a client may leave an answer unread")
    keep_alive_s: float = setting(65.0, "how long an idle connection stays open")
    request_timeout_s: float = setting(3600.0, "longest time a request may take; its own `timeout` may be shorter")
    drain_timeout_s: float = setting(60.0, "after SIGTERM: longest time for what runs to finish")
    watchdog_s: float = setting(120.0, "a step that runs longer is reported, and /health answers 503")
    ssl_certfile: str | None = setting(None, "TLS certificate; none: plain HTTP")
    ssl_keyfile: str | None = setting(None, "its key")
    ssl_ca_certs: str | None = setting(None, "clients must bring a certificate of this authority")
    metrics_prefix: str = setting("jaxserve_", "stands before every metric's name; `vllm:` serves vLLM's dashboards")
    profile_dir: str | None = setting(
        None, "folder that POST /debug/profile writes its traces to; none: they are in the answer, as a zip"
    )
    otlp_traces_endpoint: str | None = setting(
        None, "OTLP collector that gets a trace of every request, http://127.0.0.1:4318/v1/traces, say; none: no traces"
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "JSON log lines from this level on")
    log_text: bool = setting(False, "log lines also hold the text of prompts and outputs")
    max_log_len: int = setting(2000, "most characters of each text in the log", needs="log_text")

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_header_bytes", "max_connections", "max_open_requests", "max_stream_backlog",
                     "receive_timeout_s", "write_timeout_s", "keep_alive_s", "request_timeout_s", "drain_timeout_s",
                     "watchdog_s", "max_log_len"):  # fmt: skip
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        good_prefix = re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", self.metrics_prefix) is not None
        require(good_prefix, "metrics_prefix", self.metrics_prefix, "letters, digits, _ and :, like jaxserve_ or vllm:")
        require(0 <= self.port < 65536, "port", self.port, "0 to 65535")
        require(
            self.ssl_certfile is not None or (self.ssl_keyfile is None and self.ssl_ca_certs is None),
            "ssl_certfile", None, "a certificate beside ssl_keyfile and ssl_ca_certs",
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """Batch jobs: `/v1/files` and `/v1/batches`."""

    batch_dir: str | None = setting(None, "folder of files and batches; none: the server keeps none")
    batch_store_bytes: int = setting(16 << 30, "most bytes of that folder", needs="batch_dir")
    batch_max_file_bytes: int = setting(200 << 20, "largest upload", needs="batch_dir")
    batch_max_lines: int = setting(50_000, "most lines of a batch", needs="batch_dir")
    batch_max_open: int = setting(
        1000, "most batches of a tenant that have not ended; one more is refused with 429", needs="batch_dir"
    )
    batch_concurrency: int = setting(
        32, "most sequences that lines have at once, in slots that nobody else uses", needs="batch_dir"
    )
    batch_tenant: str = setting("batch", "the tenant whose share and priority lines run under", needs="batch_dir")

    def __post_init__(self) -> None:
        sizes = ("batch_store_bytes", "batch_max_file_bytes", "batch_max_lines", "batch_max_open", "batch_concurrency")
        for name in sizes:
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
