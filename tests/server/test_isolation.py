"""Two tenants with keys, over HTTP: what one sends, the other neither sees nor pays for.

docs/serving.md has the table of all that was thought of.
"""

import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from jaxserve.core.clock import MonotonicClock
from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.server import generation
from jaxserve.server.generate import GenerateAnswer
from jaxserve.server.keys import Keys
from tests.engine.conftest import build_engine
from tests.server.conftest import PATIENCE_S, Running, fake_service, serve, wait_for

KEYS = {"key-of-chat": "chat", "key-of-batch": "batch"}
TENANTS = Tenants(
    [
        Tenant(name="chat", ttft_slo_s=30.0),
        Tenant(name="batch", priority=1, ttft_slo_s=30.0, tpot_slo_s=30.0),
        Tenant(name="tokens", tokens_per_minute=60),
    ]
)
PROMPT = list(range(40))


def start(**settings: Any) -> Iterator[Running]:
    server = {name: settings.pop(name) for name in ("max_open_requests",) if name in settings}
    engine = build_engine(**({"tenants": TENANTS, "ordering": "priority", "clock": MonotonicClock()} | settings))
    yield from serve(fake_service(engine, **server), Keys(KEYS | {"key-of-tokens": "tokens"}))


@pytest.fixture
def running() -> Iterator[Running]:
    yield from start()


def post(running: Running, tenant: str, path: str = "/generate", **fields: Any) -> httpx.Response:
    body = ({"prompt_token_ids": PROMPT} if path == "/generate" else {"prompt": PROMPT}) | {"max_tokens": 4} | fields
    return running.client.post(path, json=body, headers={"Authorization": f"Bearer key-of-{tenant}"})


def series(running: Running) -> dict[tuple[str, ...], float]:
    """Samples by name and label values, without times and the process's own."""
    families = text_string_to_metric_families(running.client.get("/metrics").text)
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("jaxserve_") and not sample.name.endswith(("_created", "_bucket"))
    }


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_cached_tokens_tell_nothing_of_another_tenants_prompts(running: Running, path: str) -> None:
    def cached(tenant: str, **fields: Any) -> int:
        usage = post(running, tenant, path, **fields).json()["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    assert [cached("chat"), cached("chat")] == [0, 32]
    assert cached("batch") == 0
    assert cached("batch", cache_salt="chat") == 0
    assert cached("batch") == 32


def test_a_priority_beyond_its_class_is_taken_back_and_logged(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jaxserve")
    seen: list[int] = []
    add = running.engine.scheduler.add

    def look(sequences: Any, now: float) -> None:
        add(sequences, now)
        seen.extend(sequence.priority for sequence in sequences)

    running.engine.scheduler.add = look
    for priority in (-100, 0, 1, 7, None):
        assert post(running, "batch", priority=priority).status_code == 200
    assert seen == [1, 1, 1, 7, 1]
    logged = [fields for record in caplog.records if "priority" in (fields := getattr(record, "fields", {}))]
    assert [(fields["priority_asked"], fields["priority"]) for fields in logged] == [(-100, 1), (0, 1)]


def test_no_field_of_a_body_spoils_what_its_tenant_was_promised(running: Running) -> None:
    """As when calls with an objective that nothing can meet woke the operator."""
    for fields in ({"ttft_slo_s": 1e-9, "tpot_slo_s": 1e-9}, {"priority": 9}, {"ttft_slo_s": 1e6}):
        for _ in range(5):
            assert post(running, "batch", **fields).status_code == 200
    found = series(running)
    for objective in ("ttft", "tpot"):
        asked, met = (
            found.get((f"jaxserve_slo_requests{kind}_total", *sorted([objective, "batch", "fake"])), 0.0)
            for kind in ("", "_met")
        )
        assert asked == met > 0
    own = ("jaxserve_request_slo_requests_total", *sorted(["ttft", "batch", "fake"]))
    assert found[own] == 10
    assert found["jaxserve_request_slo_requests_met_total", *own[1:]] == 5


def test_nothing_that_a_client_sends_makes_a_series(running: Running) -> None:
    """Names, ids, models, paths, salts, users: fifteen of each, and not one series more than of five."""

    def send(i: int) -> None:
        headers = {"Authorization": "Bearer key-of-batch", "X-Request-Id": f"id-{i}", "traceparent": f"00-{i:032x}-01"}
        body = {"prompt": [1, 2], "max_tokens": 1}
        for more in (
            {"user": f"user-{i}", "cache_salt": f"salt-{i}", "seed": i, "priority": i},
            {"model": f"model-{i}"}, {"tenant": f"tenant-{i}"}, {f"field_{i}": 1}, {"n": 1000 + i},
            {"ttft_slo_s": i + 1},
        ):  # fmt: skip
            running.client.post("/v1/completions", json=body | more, headers=headers)
        running.client.post("/generate", json=body | {"request_id": f"mine-{i}"}, headers=headers)
        for method, path in (("GET", f"/nowhere/{i}"), ("POST", f"/v1/models/{i}"), ("PUT", "/generate"),
                             ("GET", f"/v1/models/{i}"), ("GET", f"/v1/files/{i}"), ("GET", f"/debug/requests/{i}"),
                             ("PROPFIND", f"/v1/batches/{i}")):  # fmt: skip
            running.client.request(method, path, headers=headers)
        running.client.get("/v1/models", headers={"Authorization": f"Bearer wrong-{i}"})

    for i in range(5):
        send(i)
    series(running)  # the scrape is a series too
    known = series(running).keys()
    for i in range(5, 15):
        send(i)
    assert sorted(series(running).keys() - known) == []


@pytest.fixture
def crowded() -> Iterator[Running]:
    yield from start(max_open_requests=8, max_num_seqs=1, blocks=3000)


def test_a_flood_of_open_calls_leaves_another_tenant_its_places(
    crowded: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step ends before the flood is refused and the other tenant's calls are in."""
    release, submit = threading.Event(), crowded.engine.fake.submit

    def wait_and_submit(plan: Any) -> Any:
        release.wait(PATIENCE_S)
        return submit(plan)

    monkeypatch.setattr(crowded.engine.fake, "submit", wait_and_submit)
    state = crowded.app.state.server
    with ThreadPoolExecutor(20) as pool:
        flood = [pool.submit(post, crowded, "batch") for _ in range(16)]
        wait_for(
            lambda: sum(call.done() for call in flood) >= 10
        )  # 8 places, of which 1 is kept for each of the others
        refused = [call.result() for call in flood if call.done()]
        mine = [pool.submit(post, crowded, "chat") for _ in range(1)]
        wait_for(lambda: state.open_calls == 7)
        release.set()
        assert [call.result().status_code for call in mine] == [200]
    assert {answer.status_code for answer in refused} == {429}
    assert "max_open_requests" in refused[0].json()["error"]["message"]
    assert sorted(call.result().status_code for call in flood) == [200] * 6 + [429] * 10


def test_a_request_id_that_another_tenant_uses_is_free(running: Running) -> None:
    seen: list[str] = []
    add = running.engine.add
    running.engine.add = lambda request: seen.append(request.id) or add(request)
    for tenant in ("chat", "batch"):
        assert post(running, tenant, request_id="mine").json()["id"] == "mine"
    stream = post(running, "chat", request_id="mine", stream=True).text
    assert {json.loads(line[6:])["id"] for line in stream.splitlines() if line.startswith("data: {")} == {"mine"}
    assert seen == ["chat/mine", "batch/mine", "chat/mine"]


def test_a_refusal_over_a_rate_says_so_in_the_headers_that_clients_read(running: Running) -> None:
    assert post(running, "tokens", max_tokens=10).status_code == 200
    refused = post(running, "tokens", max_tokens=10)
    assert refused.status_code == 429 and "tokens_per_minute" in refused.json()["error"]["message"]
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 30 <= int(refused.headers["retry-after"]) <= 41
    assert refused.headers["x-ratelimit-limit-tokens"] == "60"
    assert 10 <= int(refused.headers["x-ratelimit-remaining-tokens"]) <= 20
    assert 30 < float(refused.headers["x-ratelimit-reset-tokens"].removesuffix("s")) <= 60
    assert post(running, "tokens", max_tokens=100).status_code == 400
    assert post(running, "chat", max_tokens=10).status_code == 200
    found = series(running)
    assert found["jaxserve_tenant_rejections_total", "fake", "rate_limit", "tokens"] == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_large_answer_is_not_written_on_the_event_loop(
    embedded: Running, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    threads: list[int] = []
    for name in ("whole", "events"):
        write = getattr(GenerateAnswer, name)

        def noted(self: Any, outputs: Any, write: Any = write) -> Any:
            threads.append(threading.get_ident())
            return write(self, outputs)

        monkeypatch.setattr(GenerateAnswer, name, noted)
    answers: list[str] = []
    for large in (False, True):
        monkeypatch.setattr(generation, "LARGE", 10 if large else 10_000)
        body = {"prompt_token_ids": [5, 6, 7, 8], "max_tokens": 2, "prompt_logprobs": 3, "temperature": 0,
                "request_id": "mine", "stream": stream}  # fmt: skip
        answer = embedded.client.post("/generate", json=body)
        answers.append(answer.text if stream else json.dumps(answer.json()))
        assert answer.headers["content-type"].startswith("text/event-stream" if stream else "application/json")
        loop = embedded.app.state.service.client._thread._loop._thread_id
        assert {ident == loop for ident in threads} == {not large}
        threads.clear()
    assert answers[0] == answers[1]
