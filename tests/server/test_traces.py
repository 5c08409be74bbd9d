"""Traces: one span a generating call, by the conventions' names, in the caller's trace; an error without the extra."""

import gzip
import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanKind, StatusCode

from jaxserve.batches.store import Store
from jaxserve.cli import main
from jaxserve.core.clock import MonotonicClock
from jaxserve.core.errors import ConfigError
from jaxserve.core.sampling import SamplingParams
from jaxserve.core.sequence import Request
from jaxserve.core.server_sections import BatchConfig
from jaxserve.server.batches import Batches
from jaxserve.server.context import Call
from jaxserve.server.traces import RequestTraces, open_traces
from tests.engine.conftest import build_engine
from tests.server.conftest import Running, fake_service, log_lines, serve, wait_for

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VLLM = {
    "gen_ai.request.id", "gen_ai.request.n", "gen_ai.usage.num_sequences", "gen_ai.usage.prompt_tokens",
    "gen_ai.usage.completion_tokens", "gen_ai.latency.time_in_queue", "gen_ai.latency.time_to_first_token",
    "gen_ai.latency.e2e", "gen_ai.latency.time_in_model_prefill", "gen_ai.latency.time_in_model_decode",
    "gen_ai.latency.time_in_model_inference",
}  # fmt: skip
"""Of vllm.tracing.SpanAttributes, what is no convention's."""


class Traced:
    def __init__(self, running: Running, exporter: InMemorySpanExporter) -> None:
        self.client, self.engine, self._exporter = running.client, running.engine, exporter

    def post(self, path: str, body: dict[str, Any], **headers: str) -> Any:
        self.clear()
        return self.client.post(path, json=body, headers={name.replace("_", "-"): v for name, v in headers.items()})

    def clear(self) -> None:
        self._exporter.clear()

    def span(self) -> ReadableSpan:
        for _ in range(200):  # it is made after the last byte has gone
            if spans := self._exporter.get_finished_spans():
                (span,) = spans
                return span
            threading.Event().wait(0.01)
        raise AssertionError("no span")


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    service = fake_service(build_engine(clock=MonotonicClock()))
    for running in serve(service, traces=RequestTraces(provider)):
        yield Traced(running, exporter)


def test_a_call_is_a_span_of_the_callers_trace(traced: Traced) -> None:
    body = {"prompt": [1, 2, 3], "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 11, "n": 2,
            "presence_penalty": 0.25, "frequency_penalty": 0.5}  # fmt: skip
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x_request_id": "mine"}
    answer = traced.post("/v1/completions", body, **headers).json()
    span = traced.span()
    assert span.name == "text_completion fake" and span.kind is SpanKind.SERVER
    assert f"{span.context.trace_id:032x}" == TRACE
    assert span.parent is not None and f"{span.parent.span_id:016x}" == PARENT
    assert span.status.status_code is StatusCode.UNSET
    told = dict(span.attributes or {})
    times = {name: told.pop(name) for name in list(told) if ".latency." in name}
    told.pop("server.port")
    assert told == {
        "gen_ai.operation.name": "text_completion", "gen_ai.provider.name": "jaxserve",
        "gen_ai.request.model": "fake", "gen_ai.response.model": "fake", "gen_ai.output.type": "text",
        "gen_ai.request.id": "mine", "gen_ai.response.id": answer["id"], "jaxserve.tenant": "default",
        "gen_ai.request.max_tokens": 5, "gen_ai.request.temperature": 0.5, "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": 7, "gen_ai.request.seed": 11, "gen_ai.request.choice.count": 2, "gen_ai.request.n": 2,
        "gen_ai.request.presence_penalty": 0.25, "gen_ai.request.frequency_penalty": 0.5,
        "gen_ai.response.finish_reasons": ("length", "length"),
        "gen_ai.usage.input_tokens": 3, "gen_ai.usage.output_tokens": 10, "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.prompt_tokens": 3, "gen_ai.usage.completion_tokens": 10, "gen_ai.usage.num_sequences": 2,
        "http.request.method": "POST", "http.route": "/v1/completions", "http.response.status_code": 200,
        "url.path": "/v1/completions", "url.scheme": "http", "server.address": "127.0.0.1", "jaxserve.preemptions": 0,
    }  # fmt: skip
    assert all(value >= 0 for value in times.values())
    queue, first = times["gen_ai.latency.time_in_queue"], times["gen_ai.latency.time_to_first_token"]
    assert queue < first <= times["gen_ai.latency.e2e"]
    assert times["gen_ai.latency.time_in_model_prefill"] + queue <= first
    assert times["gen_ai.latency.time_in_model_prefill"] <= times["gen_ai.latency.time_in_model_inference"]
    assert (span.end_time or 0) - (span.start_time or 0) == int(times["gen_ai.latency.e2e"] * 1e9)


@pytest.mark.parametrize("path", ["/v1/completions", "/generate"])
def test_every_name_is_the_conventions_or_vllms(traced: Traced, path: str) -> None:
    traced.post(path, {"prompt": [1, 2, 3], "max_tokens": 2, "stream": True})
    known = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")}
    told = dict(traced.span().attributes or {})
    assert {name for name in told if name.startswith("gen_ai.")} <= known | VLLM
    assert set(told) >= VLLM
    assert told["gen_ai.request.stream"] is True
    assert told["gen_ai.response.time_to_first_chunk"] == told["gen_ai.latency.time_to_first_token"]


def test_what_was_refused_or_asked_of_others_says_so(traced: Traced) -> None:
    assert traced.post("/generate", {"prompt": [1], "max_tokenz": 3}).status_code == 400
    told = dict(traced.span().attributes or {})
    assert told["error.type"] == "InvalidRequest" and told["http.response.status_code"] == 400
    assert traced.span().status.status_code is StatusCode.UNSET  # the caller's fault is no server's error
    traced.post("/generate", {"prompt": [1], "max_tokens": 1})
    assert "error.type" not in (traced.span().attributes or {})
    assert traced.span().parent is None
    assert traced.post("/generate", {"prompt": [1], "max_tokens": 1}, traceparent="rubbish").status_code == 200
    assert traced.span().parent is None
    assert traced.post("/tokenize", {"prompt": "abc"}).status_code == 200
    traced.client.get("/health")
    assert not traced._exporter.get_finished_spans()


def test_a_line_of_a_batch_is_a_trace_of_its_own(tmp_path: Path) -> None:
    """Named as the call would be; where it came from is the batch. The log has its id."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    kept = Batches(Store(tmp_path, 1 << 20), BatchConfig(batch_dir=str(tmp_path), batch_tenant="default"))
    bodies = [{"prompt": [1, 2, 3], "max_tokens": 2}, {"prompt": [1], "max_tokens": -1}]
    entries = [
        {"custom_id": str(i), "method": "POST", "url": "/v1/completions", "body": body} for i, body in enumerate(bodies)
    ]
    content = "\n\n".join(json.dumps(entry) for entry in entries)
    service = fake_service(build_engine(clock=MonotonicClock()))
    for running in serve(service, kept=kept, traces=RequestTraces(provider)):
        with log_lines(0) as found:
            asked = {"files": {"file": ("in.jsonl", content)}, "data": {"purpose": "batch"}}
            body = {"endpoint": "/v1/completions", "completion_window": "24h"}
            body["input_file_id"] = running.client.post("/v1/files", **asked).json()["id"]
            batch = running.client.post("/v1/batches", json=body, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
            wait_for(lambda: any(line.get("status") == "completed" for line in list(found)))
        text = running.client.get("/metrics").text
    spans = exporter.get_finished_spans()
    good, bad = sorted(spans, key=lambda span: (span.attributes or {})["jaxserve.batch.line"])
    for span, status in ((good, 200), (bad, 400)):
        assert span.name == "text_completion fake" and span.kind is SpanKind.INTERNAL and span.parent is None
        told = dict(span.attributes or {})
        assert told["jaxserve.batch.id"] == batch.json()["id"] and told["http.route"] == "/v1/completions"
        assert told["http.response.status_code"] == status and "url.path" not in told
        assert f'batch_lines_total{{endpoint="/v1/completions",model_name="fake",status="{status}"}} 1.0' in text
    assert (good.attributes or {})["gen_ai.usage.output_tokens"] == 2
    assert (bad.attributes or {})["error.type"] == "InvalidParameter"
    logged = {line["trace_id"] for line in found if line["event"] == "batch line"}
    assert logged == {f"{span.context.trace_id:032x}" for span in spans}
    assert 'jaxserve_batch_lines_open{model_name="fake"} 0.0' in text


def test_values_that_otlp_has_no_type_for() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    params = SamplingParams(seed=2**64 - 1, stop=("zz",), max_tokens=None)
    call = Call("mine", requests=[Request(id="a", prompt=(1,), params=params)])
    scope = {"path": "/generate", "method": "POST", "scheme": "http", "headers": []}
    assert RequestTraces(provider).ended(call, scope, 0, None) is not None
    (span,) = exporter.get_finished_spans()
    told = dict(span.attributes or {})
    assert span.name == "text_completion" and told["error.type"] == "cut"
    assert told["gen_ai.request.seed"] == -1 and told["gen_ai.request.stop_sequences"] == ("zz",)
    assert "gen_ai.request.max_tokens" not in told and "gen_ai.response.finish_reasons" not in told


def test_a_stream_that_fails_half_way_is_an_error(traced: Traced) -> None:
    submit, left, begun = traced.engine.fake.submit, [4], threading.Event()

    def fail(plan: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            assert begun.wait(30)
            raise RuntimeError("the device burns")
        return submit(plan)

    traced.clear()
    traced.engine.fake.submit = fail
    body = {"prompt": [1, 2], "max_tokens": 9, "ignore_eos": True, "stream": True}
    with traced.client.stream("POST", "/generate", json=body) as answer:
        assert answer.status_code == 200
        begun.set()
        assert "the device burns" in answer.read().decode()
    traced.engine.fake.submit = submit
    span = traced.span()
    assert span.status.status_code is StatusCode.ERROR and (span.attributes or {})["error.type"] == "StepFailed"


def test_they_reach_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[tuple[str, ExportTraceServiceRequest]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
            got.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    collector = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    try:
        traces = open_traces(f"http://127.0.0.1:{collector.server_port}")
        for running in serve(fake_service(build_engine()), traces=traces):
            assert running.client.post("/generate", json={"prompt": [1], "max_tokens": 2}).status_code == 200
    finally:
        collector.shutdown()
        thread.join()
        collector.server_close()
    ((path, request),) = got
    assert path == "/v1/traces"
    assert_told(request)


def test_they_reach_a_collector_by_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[ExportTraceServiceRequest] = []

    class Collector(TraceServiceServicer):
        def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:
            got.append(request)
            return ExportTraceServiceResponse()

    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    collector = grpc.server(ThreadPoolExecutor(1))
    add_TraceServiceServicer_to_server(Collector(), collector)
    port = collector.add_insecure_port("127.0.0.1:0")
    collector.start()
    try:
        traces = open_traces(f"http://127.0.0.1:{port}", {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
        for running in serve(fake_service(build_engine()), traces=traces):
            assert running.client.post("/generate", json={"prompt": [1], "max_tokens": 2}).status_code == 200
    finally:
        collector.stop(None).wait(10)
    (request,) = got
    assert_told(request)


def assert_told(request: ExportTraceServiceRequest) -> None:
    resource = {pair.key: pair.value.string_value for pair in request.resource_spans[0].resource.attributes}
    assert resource["service.name"] == "jaxserve" and resource["deployment.environment.name"] == "test"
    (span,) = request.resource_spans[0].scope_spans[0].spans
    assert span.name == "text_completion fake"


def test_a_collector_that_does_not_answer_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxserve.server.traces.CLOSE_S", 0.05)
    provider, for_ever = TracerProvider(shutdown_on_exit=False), threading.Event()
    monkeypatch.setattr(provider, "shutdown", for_ever.wait)
    RequestTraces(provider).close()
    for_ever.set()


def test_the_log_line_names_the_trace(traced: Traced, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "jaxserve.server"):
        traced.post("/generate", {"prompt": [1], "max_tokens": 1}, traceparent=f"00-{TRACE}-{PARENT}-01")
        traced.span()
        for _ in range(200):
            if caplog.records:
                break
            threading.Event().wait(0.01)
    assert getattr(caplog.records[-1], "fields")["trace_id"] == TRACE  # noqa: B009
    json.dumps(getattr(caplog.records[-1], "fields"))  # noqa: B009


def test_none_by_default_and_a_remedy_for_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert open_traces(None) is None
    with pytest.raises(ConfigError, match="otlp_traces_endpoint"):
        open_traces("localhost:4318")
    with pytest.raises(ConfigError, match="http/protobuf or grpc"):
        open_traces("http://127.0.0.1:4318", {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"})
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"grpc.* is missing\): pip install \"jaxserve\[otel\]\""):
        open_traces("http://127.0.0.1:4317", {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"})
    for name in [name for name in sys.modules if name.split(".")[0] == "opentelemetry"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["serve", "--port", "0", "--otlp-traces-endpoint", "http://127.0.0.1:4318/v1/traces"]) == 2
    assert 'pip install "jaxserve[otel]"' in capsys.readouterr().err
