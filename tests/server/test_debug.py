"""The debug routes: for the admin key, true to what the scheduler recorded, and what `jaxserve timeline` reads."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxserve.cli import main
from jaxserve.core.clock import MonotonicClock
from jaxserve.server.keys import Keys
from jaxserve.server.request_names import RequestNames
from tests.engine.conftest import build_engine
from tests.server.conftest import Running, fake_service, log_lines, serve

ADMIN = "the-admin-key"
HEADERS = {"Authorization": f"Bearer {ADMIN}"}


@pytest.fixture(scope="module")
def watched() -> Iterator[Running]:
    for running in serve(fake_service(build_engine(clock=MonotonicClock())), Keys({}, ADMIN)):
        body = {"prompt": [1] * 20, "max_tokens": 5, "request_id": "mine"}
        assert running.client.post("/generate", json=body).status_code == 200
        yield running


def test_they_are_closed_without_the_admin_key(watched: Running) -> None:
    for path in ("timeline", "decisions", "requests/mine"):
        assert watched.client.get(f"/debug/{path}").status_code in (401, 403)


def test_where_a_requests_time_went(watched: Running) -> None:
    answer = watched.client.get("/debug/requests/mine", headers=HEADERS).json()
    (told,) = answer["sequences"]
    assert told["state"] == "length" and told["preemptions"] == []
    assert abs(sum(told["ttft_parts_s"].values()) - told["ttft_s"]) < 1e-3
    assert told["seconds"]["prefill"] > 0 and told["seconds"]["decode"] > 0
    missing = watched.client.get("/debug/requests/nobody", headers=HEADERS)
    assert missing.status_code == 404 and "nobody" in missing.json()["error"]["message"]


def test_a_call_is_found_by_every_id_that_its_caller_knows(watched: Running) -> None:
    """Of two prompts and two completions each, by X-Request-Id and by the answer's id: four sequences."""
    body, mine = {"prompt": [[1, 2], [3]], "n": 2, "max_tokens": 2}, {"X-Request-Id": "my-call"}
    with log_lines(1) as found:
        answer = watched.client.post("/v1/completions", json=body, headers=mine).json()
    assert found[0]["request_id"] == "my-call" and found[0]["response_id"] == answer["id"]
    for name in ("my-call", answer["id"]):
        told = watched.client.get(f"/debug/requests/{name}", headers=HEADERS).json()
        assert told["id"] == name and len(told["sequences"]) == 4
    assert len(watched.client.get(f"/debug/requests/{answer['id']}-1", headers=HEADERS).json()["sequences"]) == 2


def test_names_are_remembered_within_a_bound() -> None:
    names = RequestNames(most=4)
    names.note("a", ["1", "2"])
    names.note("b", ["b"])
    names.note("a", ["3"])
    assert names.ids("a") == ("a", "3") and names.ids("b") == ("b",)
    names.note("c", ["4", "5", "6"])
    assert names.ids("b") == ("b",) and names.ids("a") == ("a", "3") and names.ids("c") == ("c", "4", "5", "6")
    names.note("d", list("56789"))
    assert names.ids("c") == ("c",) and names.ids("d") == ("d",), "more than can be kept"


def test_the_timeline_and_the_command_that_writes_it(
    watched: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served = watched.client.get("/debug/timeline", headers=HEADERS).json()
    assert any(event["args"].get("name") == "mine" for event in served["traceEvents"])
    monkeypatch.setenv("JAXSERVE_ADMIN_KEY", ADMIN)
    out, record = tmp_path / "out.json", tmp_path / "record.json"
    assert main(["timeline", str(out), "--url", watched.url]) == 0
    assert json.loads(out.read_text()) == served
    record.write_text(watched.client.get("/debug/decisions", headers=HEADERS).text)
    assert main(["timeline", str(out), "--record", str(record)]) == 0
    assert json.loads(out.read_text()) == served
    capsys.readouterr()
    monkeypatch.delenv("JAXSERVE_ADMIN_KEY")
    assert main(["timeline", str(out), "--url", watched.url]) == 2
    assert "JAXSERVE_ADMIN_KEY" in capsys.readouterr().err
    for text, words in (
        ("[1]", "/debug/decisions"),
        ("{}", "expected a list: save the answer of GET /debug/decisions"),
        ('{"jaxserve_record": 1}\n{"step": 1}\n', "not JSON (Extra data"),
    ):
        record.write_text(text)
        assert main(["timeline", str(out), "--record", str(record)]) == 2
        assert f"{record}: " in (error := capsys.readouterr().err) and words in error
    assert main(["timeline", str(out), "--url", "localhost:8000"]) == 2
    assert "give http://HOST:PORT" in capsys.readouterr().err
