"""`GET /metrics` over HTTP: what clients did is what it says, whatever the engine is doing."""

import json
import threading
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from jaxserve.cli import main
from jaxserve.core.errors import ConfigError
from jaxserve.engine.loop import EngineLoop
from jaxserve.llm import LLM
from jaxserve.server.service import Service
from tests.engine.conftest import build_engine
from tests.server.conftest import PATIENCE_S, Letters, Running, fake_service, llm_service, serve, wait_for


def scrape(running: Running, **headers: str) -> dict[tuple[str, ...], float]:
    """Samples by (name, label values but the model's)."""
    answer = running.client.get("/metrics", headers=headers)
    assert answer.status_code == 200
    return {
        (sample.name, *(value for name, value in sorted(sample.labels.items()) if name != "model_name")): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


@pytest.fixture
def fresh() -> Iterator[Running]:
    yield from serve(fake_service(build_engine(max_model_len=20_000, blocks=3000, max_waiting=20)))


def generate(running: Running, tokens: int = 5, **fields) -> None:
    answer = running.client.post("/generate", json={"prompt_token_ids": [1, 2, 3], "max_tokens": tokens} | fields)
    assert answer.status_code == 200


def test_what_clients_did(fresh: Running) -> None:
    for _ in range(3):
        generate(fresh)
    assert fresh.client.post("/generate", json={"prompt_token_ids": [10_000]}).status_code == 400
    found = scrape(fresh)
    assert found["jaxserve_request_success_total", "length"] == 3
    assert found["jaxserve_prompt_tokens_total",] == 9
    assert found["jaxserve_generation_tokens_total",] == 15
    assert found["jaxserve_admission_rejections_total", "invalid"] == 1
    assert found["jaxserve_http_requests_total", "/generate", "200"] == 3
    assert found["jaxserve_http_requests_total", "/generate", "400"] == 1
    assert found["jaxserve_http_receive_seconds_count",] >= 3
    assert found["jaxserve_num_requests_running",] == found["jaxserve_num_requests_waiting",] == 0
    assert found["jaxserve_kv_blocks", "free"] + found["jaxserve_kv_blocks", "cached"] == 3000
    assert found["jaxserve_time_to_first_token_seconds_bucket", "+Inf"] == 3
    assert found["process_resident_memory_bytes",] > 0


def test_unknown_paths_make_no_series(fresh: Running) -> None:
    for i in range(20):
        fresh.client.get(f"/no/such/{i}")
    routes = {key[1] for key in scrape(fresh) if key[0] == "jaxserve_http_requests_total"}
    assert routes == {"none"}


def test_openmetrics_where_it_is_asked_for(fresh: Running) -> None:
    answer = fresh.client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_the_prefix_of_vllm() -> None:
    for running in serve(fake_service(build_engine(), metrics_prefix="vllm:")):
        generate(running)
        found = scrape(running)
        assert found["vllm:generation_tokens_total",] == 5
        assert not any(key[0].startswith("jaxserve_") for key in found)
    with pytest.raises(ConfigError, match="metrics_prefix"):
        fake_service(build_engine(), metrics_prefix="1-x")


@pytest.mark.slow
def test_a_long_step_does_not_keep_the_scraper_waiting() -> None:
    engine = build_engine()
    release = threading.Event()
    submit = engine.fake.submit

    def hang(plan):
        release.wait(2 * PATIENCE_S)
        return submit(plan)

    engine.fake.submit = hang
    for running in serve(fake_service(engine)):
        client = threading.Thread(target=generate, args=(running,))
        client.start()
        wait_for(lambda: running.app.state.service.client.step_age_s > 0)  # noqa: B023
        found = scrape(running)
        assert found["jaxserve_step_age_seconds",] > 0
        release.set()
        client.join(PATIENCE_S)
        assert scrape(running)["jaxserve_generation_tokens_total",] == 5


def test_an_engine_that_has_stopped_is_told_while_the_server_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = build_engine()

    def break_down(now: float) -> None:
        raise RuntimeError("a broken invariant")

    for running in serve(fake_service(engine)):
        assert scrape(running)["jaxserve_engine_up",] == 1
        monkeypatch.setattr(threading, "excepthook", lambda *_: None)
        monkeypatch.setattr(engine.scheduler, "plan", break_down)
        assert running.client.post("/generate", json={"prompt_token_ids": [1], "max_tokens": 1}).status_code == 503
        assert scrape(running)["jaxserve_engine_up",] == 0
        assert main(["doctor", running.url]) == 2
        assert "a broken invariant" in capsys.readouterr().err


def test_while_the_model_loads() -> None:
    for running in serve(None):
        assert any(key[0] == "process_cpu_seconds_total" for key in scrape(running))


def test_an_engine_is_watched_only_while_it_is_served() -> None:
    engine = build_engine()
    for _ in range(2):
        for running in serve(Service(EngineLoop(engine), fake_service(engine).make_request, Letters(), "m")):  # type: ignore[arg-type]
            generate(running)
            assert scrape(running)["jaxserve_request_success_total", "length"] == 1
    assert not engine.observers


def test_a_real_model_tells_of_its_cache(embedded: Running) -> None:
    before = scrape(embedded).get(("jaxserve_generation_tokens_total",), 0.0)
    answer = embedded.client.post("/v1/completions", json={"prompt": "ROMEO:", "max_tokens": 8, "ignore_eos": True})
    assert answer.status_code == 200
    found = scrape(embedded)
    assert found["jaxserve_generation_tokens_total",] == before + 8
    assert found["jaxserve_compilations_after_warmup_total",] == 0
    text = embedded.client.get("/metrics").text
    capacity = embedded.engine.scheduler.blocks.pool.capacity
    assert f'num_gpu_blocks="{capacity}"' in text and 'block_size="32"' in text


def test_a_compilation_while_serving_is_counted_and_the_doctor_names_it(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runner, missing = llm.runner, jax.jit(lambda x: x + 1.0)
    pack = runner._batch.sample_input

    def compile_first(plan, bucket):
        missing(np.ones(91, np.float32))  # as a step that meets a shape without a program
        return pack(plan, bucket)

    monkeypatch.setattr(runner._batch, "sample_input", compile_first)
    for running in serve(llm_service(llm)):
        generate(running)
        assert scrape(running)["jaxserve_compilations_after_warmup_total",] == 1
        assert main(["doctor", running.url, "--json"]) == 1
    assert [finding["cause"] for finding in json.loads(capsys.readouterr().out)] == ["recompilation"]
    runner._counter.count = 0
    runner._counter.last.clear()
