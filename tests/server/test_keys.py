"""API keys: who is who, what is closed, and that a key is in no log."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxserve.core.errors import ConfigError
from jaxserve.server.errors import BadKey
from jaxserve.server.keys import Keys
from jaxserve.server.log import JsonFormatter
from tests.engine.conftest import build_engine
from tests.server.conftest import Running, fake_service, serve, wait_for

ALICE, BOB, ADMIN = "alice-key-1", "bob-key-0002", "the-admin-key"
BODY = {"prompt": [1, 2], "max_tokens": 2}


@pytest.fixture(scope="module")
def guarded() -> Iterator[Running]:
    keys = Keys({ALICE: "alice", BOB: "bob"}, ADMIN)
    yield from serve(fake_service(build_engine(), cors_origins="https://a.example"), keys)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_no_key_no_work(guarded: Running) -> None:
    for headers in ({}, bearer("wrong-key-1"), {"Authorization": f"Basic {ALICE}"}, bearer(ADMIN)):
        for path, method in (("/generate", "POST"), ("/v1/models", "GET")):
            response = guarded.client.request(method, path, json=BODY, headers=headers)
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["type"] == "authentication_error"
    assert guarded.client.post("/generate", json=BODY, headers=bearer(ALICE)).status_code == 200


def test_probes_need_none(guarded: Running) -> None:
    for path in ("/health", "/ready", "/version", "/openapi.json"):
        assert guarded.client.get(path).status_code == 200


def test_a_key_is_a_tenant_to_the_scheduler(guarded: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    add = guarded.engine.add
    monkeypatch.setattr(guarded.engine, "add", lambda request: seen.append(request.tenant) or add(request))
    for key in (ALICE, BOB):
        guarded.client.post("/generate", json=BODY, headers=bearer(key))
    assert seen == ["alice", "bob"]


def test_admin_routes_are_closed_to_tenants(guarded: Running, running: Running) -> None:
    for headers in ({}, bearer(ALICE)):
        assert guarded.client.get("/debug/x", headers=headers).status_code in (401, 403)
    assert guarded.client.get("/debug/x", headers=bearer(ADMIN)).status_code == 404
    assert "JAXSERVE_ADMIN_KEY" in running.client.get("/debug/x").json()["error"]["message"]


def test_no_key_and_no_prompt_in_the_log(guarded: Running, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("jaxserve.server")
    logger.addHandler(caplog.handler)
    logger.setLevel("INFO")
    try:
        guarded.client.post("/generate", json={"prompt": "a secret", "max_tokens": 2}, headers=bearer(ALICE))
        guarded.client.post("/generate", json=BODY, headers=bearer("wrong-key-1"))
        wait_for(lambda: len(caplog.records) >= 2)  # the line is written after the answer has left
    finally:
        logger.removeHandler(caplog.handler)
    text = "\n".join(JsonFormatter().format(record) for record in caplog.records)
    assert '"tenant": "alice"' in text and '"status": 401' in text and '"output_tokens": 2' in text
    assert ALICE not in text and "wrong-key-1" not in text and "secret" not in text


def test_pages_may_call_only_where_allowed(guarded: Running, running: Running) -> None:
    ask = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    allowed = guarded.client.options("/generate", headers=ask)
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == "https://a.example"
    assert guarded.client.options("/generate", headers=ask | {"Origin": "https://b.example"}).status_code == 400
    answer = guarded.client.get("/v1/models", headers=bearer(ALICE) | {"Origin": "https://a.example"})
    assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in running.client.options("/generate", headers=ask).headers


def test_files_and_environment(tmp_path: Path) -> None:
    file, admin = tmp_path / "keys.toml", tmp_path / "admin"
    file.write_text(f'alice = "{ALICE}"\nbob = ["{BOB}", "bob-key-0003"]\n')
    admin.write_text(f"{ADMIN}\n")
    keys = Keys.from_settings(str(file), str(admin), environment={"JAXSERVE_API_KEYS": "carol:carol-key-1"})
    assert keys.tenants == ["alice", "bob", "carol"] and keys.is_admin(f"Bearer {ADMIN}")
    assert [keys.tenant_of(f"bearer {key}") for key in (ALICE, "bob-key-0003", "carol-key-1")] == [
        "alice",
        "bob",
        "carol",
    ]
    with pytest.raises(BadKey):
        keys.tenant_of(None)
    assert Keys.from_settings(None, None, environment={}).tenant_of(None) == "default"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("alice = 5", "write alice"),
        ('alice = "short"', "8 ASCII"),
        ('alice = "alice-key-1"\nbob = "alice-key-1"', "belongs to one"),
        ("", "no keys"),
        ("alice-key-1", "not TOML"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        Keys.from_settings(str(file), None, environment={})
    assert "alice-key-1" not in str(caught.value)


def test_the_admin_key_is_nobody_elses(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a key of its own"):
        Keys.from_settings(None, None, environment={"JAXSERVE_API_KEYS": f"a:{ALICE}", "JAXSERVE_ADMIN_KEY": ALICE})
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys.from_settings(str(tmp_path / "none"), None, environment={})
