"""Hub ids, against a stand-in for the Hugging Face hub on loopback."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from jaxserve.checkpoints import hub
from jaxserve.core.errors import CheckpointError, ConfigError, UnsupportedArchitecture

FIXTURES = Path(__file__).parents[1] / "fixtures"
SHA = "0123456789abcdef0123456789abcdef01234567"


class StandInHub(ThreadingHTTPServer):
    """Serves `root/OWNER/NAME` as the repository OWNER/NAME, revision main; owner `gated` is refused."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.served: list[str] = []
        self.tokens: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: StandInHub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.tokens.add(self.headers.get("Authorization"))
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if api else parts
        repository = self.server.root / owner / name
        if owner == "gated":
            self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif not repository.is_dir():
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif len(rest) > 1 and rest[1] not in ("main", SHA):
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif api:
            self._listing(repository, tree="tree" in rest)
        else:
            self._file(repository / "/".join(rest[2:]))

    def _listing(self, repository: Path, tree: bool) -> None:
        files = sorted(path for path in repository.iterdir() if path.is_file())
        if tree:
            body = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": _etag(f)} for f in files]
        else:
            identity = "/".join(repository.parts[-2:])
            body = {"id": identity, "modelId": identity, "sha": SHA, "private": False, "downloads": 0, "tags": []}
            body["siblings"] = [{"rfilename": f.name} for f in files]
        self._answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _file(self, path: Path) -> None:
        if not path.is_file():
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        if self.command == "GET":
            self.server.served.append(path.name)
        self._answer(200, path.read_bytes(), {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": SHA})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    root = tmp_path / "hub"
    repository = root / "someone" / "tiny"
    shutil.copytree(FIXTURES / "qwen2", repository)
    for name in ("tokenizer.json", "README.md", "pytorch_model.bin", "consolidated.safetensors", "chat_template.jinja"):
        (repository / name).write_text(json.dumps(name))
    shutil.copytree(repository, root / "someone" / "exotic")
    (root / "someone" / "exotic" / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    (root / "someone" / "empty").mkdir()
    (root / "someone" / "empty" / "README.md").write_text("nothing here")
    server = StandInHub(root)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hub_id_loads_and_only_what_serving_needs_is_downloaded(stand_in, tmp_path):
    """Through `load`, in a process of its own: the hub's address is an environment variable read at import."""
    program = (
        "import sys; from jaxserve.checkpoints import load; c = load(sys.argv[1], token='secret'); print(c.directory)"
    )
    environment = os.environ | {
        "HF_ENDPOINT": stand_in.url, "HF_HOME": str(tmp_path / "home"), "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip
    environment.pop("HF_TOKEN", None)
    done = subprocess.run(
        [sys.executable, "-c", program, "someone/tiny"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "home")
    assert sorted(stand_in.served) == ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    assert "Bearer secret" in stand_in.tokens


def test_a_second_look_downloads_nothing_and_works_offline(stand_in, tmp_path):
    first = hub.resolve("someone/tiny", cache_dir=tmp_path / "cache", endpoint=stand_in.url)
    served = len(stand_in.served)
    assert hub.resolve("someone/tiny", cache_dir=tmp_path / "cache", endpoint=stand_in.url) == first
    assert len(stand_in.served) == served
    assert hub.resolve("someone/tiny", cache_dir=tmp_path / "cache", endpoint="http://127.0.0.1:9") == first


def test_the_configuration_alone(stand_in, tmp_path):
    folder = hub.resolve("someone/tiny", cache_dir=tmp_path / "cache", endpoint=stand_in.url, part="config")
    assert stand_in.served == ["config.json"] == [path.name for path in folder.iterdir()]


def test_a_tokenizer_alone_of_a_repository_that_is_no_model(stand_in, tmp_path):
    repository = stand_in.root / "someone" / "words"
    shutil.copytree(stand_in.root / "someone" / "tiny", repository)
    (repository / "config.json").unlink()
    folder = hub.resolve("someone/words", cache_dir=tmp_path / "cache", endpoint=stand_in.url, part="tokenizer")
    assert sorted(path.name for path in folder.iterdir()) == ["chat_template.jinja", "tokenizer.json"]


def test_an_unsupported_model_is_refused_before_its_weights_are_downloaded(stand_in, tmp_path):
    with pytest.raises(UnsupportedArchitecture, match=r"MambaForCausalLM.*LlamaForCausalLM, MistralForCausalLM"):
        hub.resolve("someone/exotic", cache_dir=tmp_path / "cache", endpoint=stand_in.url)
    assert stand_in.served == ["config.json"]


@pytest.mark.parametrize(
    ("repo_id", "revision", "found"),
    [
        ("someone/missing", None, "neither a directory here nor a repository"),
        ("gated/tiny", None, "access is gated.*HF_TOKEN"),
        ("someone/tiny", "v9", "no revision 'v9'"),
        ("someone/empty", None, "no config.json"),
    ],
)
def test_what_the_hub_refuses_is_explained(stand_in, tmp_path, repo_id, revision, found):
    with pytest.raises(CheckpointError, match=found):
        hub.resolve(repo_id, revision=revision, cache_dir=tmp_path / "cache", endpoint=stand_in.url)


def test_an_unreachable_hub_is_explained(tmp_path):
    with pytest.raises(CheckpointError, match=r"someone/tiny: the hub could not be read .*; check the connection"):
        hub.resolve("someone/tiny", cache_dir=tmp_path, endpoint="http://127.0.0.1:9")


@pytest.mark.parametrize("source", ["./missing/model", "/missing/model", "missing", "a/b/c", "../up"])
def test_what_looks_like_a_path_is_not_looked_up(source):
    with pytest.raises(CheckpointError, match="no such directory"):
        hub.resolve(source)


def test_a_directory_has_no_revisions() -> None:
    with pytest.raises(ConfigError, match=r"revision = 'v1' .* belong to hub ids"):
        hub.resolve(FIXTURES / "qwen3", revision="v1")
