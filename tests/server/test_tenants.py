"""Who asks and what was promised: by an API key, else by the fields of the body; on every generating route."""

import asyncio
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from jaxserve.batches.lines import Line
from jaxserve.batches.store import Store
from jaxserve.core.sequence import Request
from jaxserve.core.server_sections import BatchConfig
from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.server.batches import Batches
from jaxserve.server.keys import Keys
from tests.engine.conftest import build_engine
from tests.server.conftest import Running, fake_service, serve, wait_for

ROUTES = {
    "/generate": {"prompt": [1, 2], "max_tokens": 2},
    "/v1/completions": {"prompt": [[1, 2], [3]], "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
}
KEY = {"Authorization": "Bearer key-of-chat"}


def start(keys: Keys | None = None) -> Iterator[Running]:
    tenants = Tenants([Tenant(name="chat", ttft_slo_s=0.5), Tenant(name="bulk")])
    service = fake_service(build_engine(tenants=tenants))
    service.tokenizer.render_chat = lambda messages, **options: messages[0]["content"]  # type: ignore[union-attr]
    yield from serve(service, keys)


@pytest.fixture(scope="module")
def open_to_all() -> Iterator[Running]:
    yield from start()


@pytest.fixture(scope="module")
def guarded() -> Iterator[Running]:
    yield from start(Keys({"key-of-chat": "chat"}))


def asked(running: Running, patch: pytest.MonkeyPatch, path: str, headers: Any = None, **fields: Any) -> list[Request]:
    """The engine's requests that a call became."""
    seen: list[Request] = []
    add = running.engine.add
    with patch.context() as patched:
        patched.setattr(running.engine, "add", lambda request: seen.append(request) or add(request))
        response = running.client.post(path, json=ROUTES[path] | fields, headers=headers)
    assert response.status_code == 200, response.text
    return seen


@pytest.mark.parametrize("path", ROUTES)
def test_the_body_names_tenant_and_objectives(open_to_all: Running, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    fields = {"tenant": "bulk", "ttft_slo_s": 2, "tpot_slo_s": 0.25}
    requests = asked(open_to_all, monkeypatch, path, **fields)
    assert len(requests) == (2 if path == "/v1/completions" else 1)
    assert {(r.tenant, r.ttft_slo_s, r.tpot_slo_s) for r in requests} == {("bulk", 2.0, 0.25)}
    (plain, *_) = asked(open_to_all, monkeypatch, path)
    assert (plain.tenant, plain.ttft_slo_s, plain.tpot_slo_s) == ("default", None, None)


@pytest.mark.parametrize("path", ROUTES)
def test_a_key_decides(guarded: Running, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    for fields in ({}, {"tenant": "chat"}, {"tenant": None}):
        assert {r.tenant for r in asked(guarded, monkeypatch, path, KEY, **fields)} == {"chat"}
    for other in ("bulk", "nobody", "default"):
        response = guarded.client.post(path, json=ROUTES[path] | {"tenant": other}, headers=KEY)
        error = response.json()["error"]
        assert response.status_code == 403 and error["param"] == "tenant"
        assert "this API key is of 'chat'" in error["message"] and "leave tenant out" in error["message"]


def test_a_line_of_a_batch_is_of_the_batches_tenant(open_to_all: Running, tmp_path: Path) -> None:
    line = Line(0, "c0", ROUTES["/v1/completions"] | {"tenant": "chat"})
    with closing(Store(tmp_path, 1 << 20)) as store:
        file = store.add_file(io.BytesIO(b"x"), "default", "in.jsonl", "batch", 0.0)
        batch = store.add_batch("default", "/v1/completions", file.id, "24h", 86400, None, 0.0)
        batches = Batches(store, BatchConfig(batch_tenant="bulk"))
        told: list[int] = []
        service = open_to_all.app.state.service
        result = asyncio.run(batches.run_line(service, batch, line, lambda *one: told.append(one[-1])))
    assert told == [403] == [result.status] and "a batch is of 'bulk'" in result.body["error"]["message"]


def test_a_line_of_a_batch_has_the_prefixes_of_its_owner(
    open_to_all: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(0, "c0", {"prompt": [1, 2], "max_tokens": 2, "priority": -5})
    seen: list[Request] = []
    add = open_to_all.engine.add
    monkeypatch.setattr(open_to_all.engine, "add", lambda request: seen.append(request) or add(request))
    with closing(Store(tmp_path, 1 << 20)) as store:
        file = store.add_file(io.BytesIO(b"x"), "chat", "in.jsonl", "batch", 0.0)
        batch = store.add_batch("chat", "/v1/completions", file.id, "24h", 86400, None, 0.0)
        batches = Batches(store, BatchConfig(batch_tenant="bulk", batch_concurrency=10))
        service = open_to_all.app.state.service

        async def run() -> int:
            work = batches.run_line(service, batch, line, lambda *one: None)
            result = asyncio.run_coroutine_threadsafe(work, service.client._thread._loop)
            return (await asyncio.wrap_future(result)).status

        assert asyncio.run(run()) == 200
    assert [(request.tenant, request.owner) for request in seen] == [("bulk", "chat")]
    assert [batches.share(Tenant(name="a", batch_share=share)) for share in (0.01, 0.25, 1.0)] == [1, 2, 10]


def test_a_tenants_own_queue_is_bounded_and_nobody_elses() -> None:
    tenants = Tenants([Tenant(name="chat", max_waiting=2), Tenant(name="bulk")])
    engine = build_engine(tenants=tenants, max_num_seqs=1, max_model_len=20_000, blocks=3000)
    for running in serve(fake_service(engine, max_stream_backlog=1_000_000)):
        long = {"prompt": [1], "max_tokens": 19_000, "ignore_eos": True, "stream": True, "tenant": "bulk"}
        with running.client.stream("POST", "/generate", json=long) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")  # it runs, and whoever comes now waits
            asked = {"prompt": [[1]] * 2, "max_tokens": 1, "tenant": "chat", "timeout": 60}
            with ThreadPoolExecutor(1) as pool:
                first = pool.submit(running.client.post, "/v1/completions", json=asked)
                wait_for(lambda: [s.tenant for s in list(engine.scheduler.waiting)].count("chat") == 2)
                refused = running.client.post("/v1/completions", json=asked)
                assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
                assert "max_waiting of tenant 'chat'" in refused.json()["error"]["message"]
                response.close()
                assert first.result().status_code == 200
        for fields, status in [({"tenant": "chat", "prompt": [[1]] * 3}, 400), ({"tenant": "bulk"}, 200)]:
            response = running.client.post("/v1/completions", json={"prompt": [1], "max_tokens": 1} | fields)
            assert response.status_code == status, response.text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tenant": "nobody"}, "nobody is called 'nobody'; known: bulk, chat, default"),
        ({"tenant": ""}, "nobody is called ''"),
        ({"tenant": 5}, "valid string"),
        ({"ttft_slo_s": 0}, "greater than 0"),
        ({"ttft_slo_s": "1"}, "valid number"),
        ({"tpot_slo_s": -1.5}, "greater than 0"),
        ({"tpot_slo_s": 10**400}, "tpot_slo_s"),
    ],
)
@pytest.mark.parametrize("path", ROUTES)
def test_refusals_name_the_field(open_to_all: Running, path: str, fields: dict[str, Any], words: str) -> None:
    response = open_to_all.client.post(path, json=ROUTES[path] | fields)
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == next(iter(fields)) and words in error["message"]


def test_metrics_judge_a_requests_own_objective_apart(open_to_all: Running) -> None:
    def judged(series: str) -> float:
        text = open_to_all.client.get("/metrics").text
        lines = [line for line in text.splitlines() if line.startswith(f"jaxserve_{series}_total{{")]
        return sum(float(x.split()[-1]) for x in lines if 'tenant="bulk"' in x and 'objective="ttft"' in x)

    before = judged("request_slo_requests")
    open_to_all.client.post("/generate", json=ROUTES["/generate"] | {"tenant": "bulk"})
    assert judged("request_slo_requests") == before
    open_to_all.client.post("/generate", json=ROUTES["/generate"] | {"tenant": "bulk", "ttft_slo_s": 60})
    assert judged("request_slo_requests") == before + 1
    assert judged("slo_requests") == 0.0, "nothing was promised to bulk"
