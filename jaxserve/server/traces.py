"""OpenTelemetry traces: a span for every call that generates, and for every line of a batch, sent to an OTLP collector.
Off by default.

The span is made when the call has ended, of what was noted on the way: a call pays once, a token never. It continues
the caller's trace (W3C `traceparent`; a line of a batch begins its own) and asks the SDK's sampler
(`OTEL_TRACES_SAMPLER`), as any span does.

Attributes have the names of OpenTelemetry's conventions for GenAI, and beside them those that vLLM's spans have
(`gen_ai.latency.*`, `gen_ai.usage.prompt_tokens`), so that what was made for either reads these. They hold no prompt
and no output.
"""

import os
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.types import Scope

from jaxserve import __version__
from jaxserve.batches.lines import Line
from jaxserve.batches.records import Batch
from jaxserve.core.errors import ConfigError
from jaxserve.engine.outputs import SequenceMetrics
from jaxserve.server.context import Call

OPERATIONS = {
    "/v1/completions": "text_completion",
    "/v1/chat/completions": "chat",
    "/generate": "text_completion",
}
"""What the conventions call the work of each generating route."""
PROVIDER = "jaxserve"
CLOSE_S = 5.0
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class RequestTraces:
    """Makes spans with a `TracerProvider` of the SDK and ends it with itself. One caller: the event loop."""

    def __init__(self, provider: Any) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("jaxserve", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._kinds, self._error, self._nowhere = SpanKind, StatusCode.ERROR, Context()

    def ended(self, call: Call, scope: Scope, status: int, model: str | None) -> str | None:
        """A call has ended: its trace's id, 32 hexadecimal digits, if it was one that generates."""
        operation = OPERATIONS.get(scope["path"])
        if operation is None or scope["method"] != "POST":
            return None
        caller = self._propagator.extract(_carrier(scope["headers"]))
        return self._span(call, operation, _way(scope), status, model, self._kinds.SERVER, caller)

    def line_ended(self, call: Call, batch: Batch, line: Line, status: int, model: str) -> str:
        """A line of a batch has its result: its trace's id. Nobody waits for it, so it is no server's span."""
        way = {"http.route": batch.endpoint, "jaxserve.batch.id": batch.id, "jaxserve.batch.line": line.number + 1}
        operation = OPERATIONS[batch.endpoint]
        return self._span(call, operation, way, status, model, self._kinds.INTERNAL, self._nowhere)

    def _span(
        self, call: Call, operation: str, way: dict[str, Any], status: int, model: str | None, kind: Any, context: Any
    ) -> str:
        ended_ns, duration_s = time.time_ns(), time.monotonic() - call.began_s
        span = self._tracer.start_span(
            operation if model is None else f"{operation} {model}",
            context=context,
            kind=kind,
            attributes=_attributes(call, way, status, model, operation, duration_s),
            start_time=ended_ns - int(duration_s * 1e9),
        )
        if status >= 500 or (call.failure is not None and status < 400):
            span.set_status(self._error, call.failure)
        span.end(ended_ns)
        return f"{span.get_span_context().trace_id:032x}"

    def close(self) -> None:
        """Send what has not been sent, in CLOSE_S at most: a collector that is not there must not hold up the end."""
        sending = threading.Thread(target=self._provider.shutdown, name="jaxserve-traces", daemon=True)
        sending.start()
        sending.join(CLOSE_S)


def open_traces(endpoint: str | None, environment: Mapping[str, str] = os.environ) -> RequestTraces | None:
    """None without an endpoint. The protocol is http/protobuf, or grpc if the SDK's own variable says so.

    Raises:
      ConfigError: what it needs is not installed, or `endpoint` is no address.
    """
    if endpoint is None:
        return None
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"otlp_traces_endpoint = {endpoint!r} cannot work: give a collector's URL, like http://127.0.0.1:4318/v1/traces"
        )
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), "http/protobuf")
    try:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = _exporter(endpoint, protocol)
    except ImportError as error:
        raise ConfigError(
            f'otlp_traces_endpoint needs OpenTelemetry ({error.name} is missing): pip install "jaxserve[otel]"'
        ) from error
    own = Resource({"service.name": "jaxserve", "service.version": __version__})
    provider = TracerProvider(resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return RequestTraces(provider)


def _exporter(endpoint: str, protocol: str) -> Any:
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(endpoint=endpoint, insecure=endpoint.startswith("http:"))
    if protocol != "http/protobuf":
        raise ConfigError(f"{_PROTOCOLS[0]} = {protocol!r} cannot work: give http/protobuf or grpc")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    bare = urlsplit(endpoint).path in ("", "/")
    return OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces" if bare else endpoint)


def _carrier(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    wanted = (b"traceparent", b"tracestate")
    return {name.decode(): value.decode("latin-1") for name, value in headers if name in wanted}


def _way(scope: Scope) -> dict[str, Any]:
    """How a call came in."""
    host, port = scope.get("server") or (None, None)
    return {
        "http.request.method": scope["method"],
        "http.route": scope["path"],
        "url.path": scope["path"],
        "url.scheme": scope["scheme"],
        "server.address": host,
        "server.port": port,
    }


def _attributes(
    call: Call, way: dict[str, Any], status: int, model: str | None, operation: str, duration_s: float
) -> dict[str, Any]:
    """By the conventions' names, then by vLLM's; what is not known is left out. `way`: how it was asked."""
    found: dict[str, Any] = way | {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": model,
        "gen_ai.request.id": call.request_id,
        "gen_ai.latency.e2e": duration_s,
        "http.response.status_code": status or None,
        "jaxserve.tenant": call.tenant,
    }
    if call.failure is not None or status >= 400 or not status:
        found["error.type"] = call.failure or str(status or "cut")
    if call.requests:
        found |= _asked(call) | _answered(call, model)
    return {name: value for name, value in found.items() if value is not None}


def _asked(call: Call) -> dict[str, Any]:
    params = call.requests[0].params
    return {
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k or None,
        "gen_ai.request.frequency_penalty": params.frequency_penalty,
        "gen_ai.request.presence_penalty": params.presence_penalty,
        "gen_ai.request.seed": _in_64_bits(params.seed),
        "gen_ai.request.stop_sequences": list(params.stop) or None,
        "gen_ai.request.choice.count": params.n if params.n != 1 else None,
        "gen_ai.request.stream": call.stream or None,
        "gen_ai.request.n": params.n,
    }


def _answered(call: Call, model: str | None) -> dict[str, Any]:
    """Waits and times of several completions: the longest. A completion that has not ended is about to be aborted."""
    first_s = None if call.first_token_s is None else call.first_token_s - call.began_s
    places = {request.id: place for place, request in enumerate(call.requests)}
    ordered = sorted(call.completions, key=lambda completion: (places[completion[0]], completion[1]))
    last = [call.completions[completion] for completion in ordered]
    known = [output.metrics for output in last if output.metrics is not None]
    return {
        "gen_ai.response.model": model,
        "gen_ai.response.id": call.response_id,
        "gen_ai.response.finish_reasons": [str(output.finish_reason or "abort") for output in last] or None,
        "gen_ai.response.time_to_first_chunk": first_s if call.stream else None,
        "gen_ai.output.type": "text",
        "gen_ai.usage.input_tokens": call.prompt_tokens,
        "gen_ai.usage.output_tokens": call.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": call.cached_tokens,
        "gen_ai.usage.prompt_tokens": call.prompt_tokens,
        "gen_ai.usage.completion_tokens": call.output_tokens,
        "gen_ai.usage.num_sequences": len(call.requests) * call.requests[0].params.n,
        "gen_ai.latency.time_to_first_token": first_s,
        "gen_ai.latency.time_in_queue": _longest(known, "queued_s", "first_scheduled_s"),
        "gen_ai.latency.time_in_model_prefill": _longest(known, "first_scheduled_s", "first_token_s"),
        "gen_ai.latency.time_in_model_decode": _longest(known, "first_token_s", "finished_s"),
        "gen_ai.latency.time_in_model_inference": _longest(known, "first_scheduled_s", "finished_s"),
        "jaxserve.preemptions": sum(metrics.preemptions for metrics in known),
    }


def _longest(known: Iterable[SequenceMetrics], since: str, until: str) -> float | None:
    times = [(getattr(metrics, since), getattr(metrics, until)) for metrics in known]
    return max((end - begin for begin, end in times if begin is not None and end is not None), default=None)


def _in_64_bits(seed: int | None) -> int | None:
    """As a signed number, which is all that OTLP has."""
    return seed if seed is None or seed < 2**63 else seed - 2**64
