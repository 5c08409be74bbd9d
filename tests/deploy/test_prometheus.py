"""A real Prometheus scrapes a server under load; every panel's and every alert's query has an answer there."""

import importlib.util
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from jaxserve.metrics.catalog import METRICS
from jaxserve.server.keys import Keys
from tests.server.conftest import fake_service, serve
from tests.server.test_dashboard import KEYS, Load, slow_engine

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
WINDOW = "60s"
"""Rates are taken over this much: a busy machine scrapes late."""
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus is missing: apt-get install prometheus",
)


def dashboards() -> dict[str, dict]:
    return {path.name: json.loads(path.read_text()) for path in sorted((DEPLOY / "grafana").glob("*.json"))}


def panel_queries() -> list[str]:
    return [
        target["expr"] for board in dashboards().values() for panel in board["panels"] for target in panel["targets"]
    ]


def alert_queries() -> list[str]:
    rules = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]
    return [rule["expr"] for rule in rules]


def test_the_dashboards_are_those_of_the_script() -> None:
    spec = importlib.util.spec_from_file_location("make", DEPLOY / "grafana" / "make.py")
    assert spec is not None and spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    assert make.files() == {path.name: path.read_text() for path in (DEPLOY / "grafana").glob("*.json")}


def test_every_metric_named_in_deploy_exists() -> None:
    known = set()
    for metric in METRICS.values():
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(metric.kind, [""])
        known |= {f"jaxserve_{metric.name}{end}" for end in ends}
    named = {name for query in panel_queries() + alert_queries() for name in re.findall(r"\bjaxserve_\w+", query)}
    assert named <= known


@pytest.mark.slow
@needs_prometheus
def test_the_rules_fire_on_their_causes_only() -> None:
    checks = [["check", "config", name] for name in ("prometheus.yml", "prometheus-compose.yml")]
    for arguments in (*checks, ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(["promtool", *arguments], cwd=DEPLOY, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Its address and the server's; it scrapes a server whose two tenants are short of blocks, once a second."""
    keys = Keys({key: tenant for tenant, key in KEYS.items()}, "the-admin-key")
    servers = serve(fake_service(slow_engine(), device=Device()), keys)
    running = next(servers)
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOY / "alerts.yml")]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [running.url.removeprefix("http://")]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
               f"--web.listen-address={address}", "--log.level=error"]  # fmt: skip
    process = subprocess.Popen(command)
    load = Load(running.url)
    try:
        # A refusal, so that there is something to show of refusals by tenant.
        headers = {"Authorization": f"Bearer {KEYS['chat']}"}
        refused = httpx.post(f"{running.url}/generate", json={"prompt_token_ids": [5000]}, headers=headers)
        assert refused.status_code == 400
        yield f"http://{address}", running.url
    finally:
        load.stop()
        process.terminate()
        process.wait(30)
        next(servers, None)


class Device:
    compilations_after_warmup = 0
    compilations = ()
    kv_bytes = 4100


def answers(url: str, query: str) -> list[dict]:
    """Series with a number."""
    answer = httpx.get(f"{url}/api/v1/query", params={"query": query}).json()
    assert answer["status"] == "success", f"{query}: {answer.get('error')}"
    return [series for series in answer["data"]["result"] if series["value"][1] != "NaN"]


def outgrow_the_pool(server: str) -> None:
    """Six completions that together need twice the blocks there are: some of them are preempted, every time."""
    body = {"prompt_token_ids": list(range(20)), "max_tokens": 40, "n": 6}
    headers = {"Authorization": f"Bearer {KEYS['chat']}"}
    assert httpx.post(f"{server}/generate", json=body, headers=headers, timeout=60).status_code == 200


@needs_prometheus
@pytest.mark.slow
def test_every_query_has_an_answer(prometheus: tuple[str, str]) -> None:
    """Alerts are asked without their thresholds: a healthy server's alerts have no answer, which is the point."""
    queries = [query.replace("$__rate_interval", WINDOW).replace("$model_name", "fake") for query in panel_queries()]
    for query in alert_queries():
        for part in re.split(r"\band\b", query):
            side = re.sub(r"\s*(==|>|<)\s*[\d.]+\s*$", "", part)
            assert side != part, f"no threshold in {part}"
            queries.append(re.sub(r"\[\d+[mh]\]", f"[{WINDOW}]", side))
    assert len(queries) > 70
    address, server = prometheus
    end = time.monotonic() + 120
    empty = queries
    while empty and time.monotonic() < end:
        outgrow_the_pool(server)
        time.sleep(2)
        try:
            empty = [query for query in empty if not answers(address, query)]
        except httpx.TransportError:
            continue  # it is still starting
    assert not empty, "no answer: " + "\n".join(empty)
    health = answers(address, 'up{job="jaxserve"}')
    assert [series["value"][1] for series in health] == ["1"]
