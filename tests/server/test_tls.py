"""HTTPS by uvicorn's options, with certificates made here: a stream over it, and clients that must show their own."""

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from jaxserve.core.errors import ConfigError
from jaxserve.core.server_sections import ServerConfig
from jaxserve.server.app import create_app
from jaxserve.server.serve import Server
from tests.engine.conftest import build_engine
from tests.server.conftest import Background, fake_service

trustme = pytest.importorskip("trustme", reason="trustme makes the certificates: pip install -e '.[test]'")
BODY = {"prompt": [1, 2, 3], "max_tokens": 8, "ignore_eos": True}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths: ca, cert, key of a server on 127.0.0.1, and client, a certificate with its key."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    server, client = authority.issue_cert("127.0.0.1"), authority.issue_cert("ada@example.org")
    authority.cert_pem.write_to_path(folder / "ca")
    server.cert_chain_pems[0].write_to_path(folder / "cert")
    server.private_key_pem.write_to_path(folder / "key")
    client.private_key_and_cert_chain_pem.write_to_path(folder / "client")
    return {name: str(folder / name) for name in ("ca", "cert", "key", "client")}


def https(files: dict[str, str], **settings: Any) -> Iterator[str]:
    """The address of a server with a certificate."""
    service = fake_service(build_engine(), ssl_certfile=files["cert"], ssl_keyfile=files["key"], **settings)
    background = Background(create_app(service))
    yield background.url.replace("http://", "https://")
    background.stop()


def trusting(files: dict[str, str], certificate: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=files["ca"])
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context


def test_answers_and_streams_over_tls(files: dict[str, str]) -> None:
    for url in https(files):
        with httpx.Client(base_url=url, verify=trusting(files)) as client:
            assert client.get("/ready").status_code == 200
            whole = client.post("/v1/completions", json=BODY).json()
            assert whole["usage"]["completion_tokens"] == 8
            outside = openai.OpenAI(base_url=f"{url}/v1", api_key="none", http_client=client, max_retries=0)
            asked = {"prompt": [1, 2, 3], "max_tokens": 8, "extra_body": {"ignore_eos": True}}
            chunks = list(outside.completions.create(model="fake", **asked, stream=True))  # type: ignore[call-overload]
            assert len(chunks) == 8 and chunks[-1].choices[0].finish_reason == "length"
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            httpx.get(f"{url}/ready")
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(url.replace("https://", "http://") + "/ready")


def test_clients_must_show_a_certificate_where_one_is_asked_for(files: dict[str, str]) -> None:
    for url in https(files, ssl_ca_certs=files["ca"]):
        assert httpx.get(f"{url}/ready", verify=trusting(files, files["client"])).status_code == 200
        with pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)):
            httpx.get(f"{url}/ready", verify=trusting(files))


@pytest.mark.parametrize("changed", [{"ssl_keyfile": "/nowhere"}, {"ssl_keyfile": "ca"}, {"ssl_ca_certs": "/nowhere"}])
def test_files_that_are_none_are_said_so(files: dict[str, str], changed: dict[str, str], tmp_path: Path) -> None:
    given = {"ssl_certfile": files["cert"], "ssl_keyfile": files["key"]}
    config = ServerConfig(**(given | {name: files.get(value, value) for name, value in changed.items()}))
    with pytest.raises(ConfigError, match="ssl_certfile, ssl_keyfile or ssl_ca_certs"):
        Server(create_app(fake_service(build_engine())), config)
