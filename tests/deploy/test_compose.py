"""The image and the compose files, as far as they can be tried without a Docker engine.

What they name is there, and the package is built from what the image copies and from nothing else.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jaxserve.cli import _parser
from jaxserve.core.config import EngineConfig
from jaxserve.core.server_sections import ServerConfig
from tests.server.conftest import PATIENCE_S, SMALL, wait_for

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
ROOT = DEPLOY.parent
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
PROJECT = (ROOT / "pyproject.toml").read_text()


def copied() -> list[str]:
    lines = re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE)
    return [name for line in lines for name in line.split()]


def json_form(word: str) -> list[str]:
    found = re.search(rf"^{word} (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert found is not None, f"{word} is a list in JSON: a shell between would keep the signal"
    return json.loads(found.group(1))


def services(name: str) -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / name).read_text())["services"]


def test_what_the_image_copies_exists_and_is_not_ignored() -> None:
    assert all((ROOT / name).exists() for name in copied())
    first, *rest = [
        line for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if not line.startswith("#")
    ]
    assert first == "*" and {line[1:] for line in rest if line.startswith("!")} == set(copied())


def test_its_instructions_are_known_and_in_a_good_order() -> None:
    joined = re.sub(r"\\\n", " ", DOCKERFILE)
    words = [line.split()[0] for line in joined.splitlines() if line and not line.startswith("#")]
    assert set(words) <= {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE", "STOPSIGNAL",
                          "HEALTHCHECK", "ENTRYPOINT", "CMD"}  # fmt: skip
    assert words[0] == "FROM" and words.count("RUN") == 1 and words.index("USER") > words.index("RUN")
    python = re.search(r"^FROM python:(\d+\.\d+)-slim$", DOCKERFILE, re.MULTILINE)
    assert python is not None and tuple(map(int, python.group(1).split("."))) >= (3, 11)
    (port,) = re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)
    assert int(port) == ServerConfig().port and f"127.0.0.1:{port}/ready" in DOCKERFILE


def test_its_json_forms_and_shell_parse() -> None:
    assert json_form("ENTRYPOINT") == ["jaxserve"]
    _parser().parse_args(json_form("CMD"))
    health = json.loads(re.search(r"^  CMD (\[.*\])$", DOCKERFILE, re.MULTILINE).group(1))  # type: ignore[union-attr]
    compile(health[2], "health check", "exec")
    run = re.search(r"^RUN (.*?)(?<!\\)$", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert run is not None
    subprocess.run(["sh", "-n", "-c", run.group(1)], check=True)
    (what,) = re.findall(r"pip install --no-cache-dir (\S+)", run.group(1))
    for extra, wanted in (("", "."), ("cuda12", ".[cuda12]"), ("cuda12,otel", ".[cuda12,otel]")):
        shell = subprocess.run(["sh", "-c", f"printf %s {what}"], env={"EXTRA": extra}, capture_output=True, check=True)
        assert shell.stdout.decode() == wanted
        assert all(re.search(rf"^{name} = \[", PROJECT, re.MULTILINE) for name in extra.split(",") if name)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the image has in its site-packages, but for the dependencies: installed from a copy of what is copied."""
    app, site = tmp_path_factory.mktemp("app"), tmp_path_factory.mktemp("site")
    for name in copied():
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, app / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, app)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--no-deps", "--target", str(site)]
    subprocess.run([*install, "."], cwd=app, check=True, capture_output=True)
    return site


@pytest.mark.slow
def test_the_package_is_built_from_what_is_copied(installed: Path) -> None:
    for name in ("dashboard/index.html", "dashboard/dashboard.css", "dashboard/dashboard.js", "dashboard/charts.js"):
        assert (installed / "jaxserve" / "server" / name).exists()
    assert (installed / "jaxserve" / "embedded" / "model.safetensors").exists()
    assert (installed / "share" / "jaxserve" / "targets" / "h200.txtpb").exists()


@pytest.mark.slow
def test_it_starts_is_healthy_and_drains_as_the_image_says(
    installed: Path, tmp_path: Path, compilation_cache: str
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    entry, command = json_form("ENTRYPOINT"), json_form("CMD")
    program = [sys.executable, str(installed / "bin" / entry[0]), *entry[1:], *command, "--host=127.0.0.1"]
    options = [f"--port={port}", f"--compilation-cache-dir={compilation_cache}", *SMALL]
    environment = os.environ | {"PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path)}
    health = json.loads(re.search(r"^  CMD (\[.*\])$", DOCKERFILE, re.MULTILINE).group(1))  # type: ignore[union-attr]
    check = [sys.executable, health[1], health[2].replace(":8000", f":{port}")]
    with subprocess.Popen([*program, *options], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as server:
        try:

            def healthy() -> bool:
                assert server.poll() is None, "it has ended"
                return subprocess.run(check, capture_output=True).returncode == 0

            wait_for(healthy, 5 * PATIENCE_S)
            sent = re.search(r"^STOPSIGNAL (\w+)$", DOCKERFILE, re.MULTILINE)
            server.send_signal(signal.Signals[sent.group(1)])  # type: ignore[union-attr]
            assert server.wait(PATIENCE_S) == 0
        finally:
            server.kill()


@pytest.mark.parametrize("name", ["compose.yml", "compose-gpu.yml"])
def test_what_the_compose_files_mount_and_run_exists(name: str) -> None:
    found = services(name)
    assert set(found) <= {"jaxserve", "prometheus", "grafana"}
    for service in found.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), "loopback only"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (DEPLOY / source).exists()
    given = _parser().parse_args(found["jaxserve"]["command"])
    if given.config:
        assert "configs" in copied() and EngineConfig.from_toml(ROOT / given.config)
    for extra in found["jaxserve"]["build"].get("args", {}).values():
        assert re.search(rf"^{extra} = \[", PROJECT, re.MULTILINE)


def test_what_the_compose_file_starts() -> None:
    found = services("compose.yml")
    assert set(found) == {"jaxserve", "prometheus", "grafana"}
    build = found["jaxserve"]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT and (ROOT / build["dockerfile"]).exists()
    grace_s = int(found["jaxserve"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > ServerConfig().drain_timeout_s
    assert (DEPLOY / found["prometheus"]["command"][0].split("/")[-1]).exists()
    volumes = yaml.safe_load((DEPLOY / "compose.yml").read_text())["volumes"]
    assert all(volume.split(":")[0] in volumes for volume in found["jaxserve"]["volumes"])


def test_a_volume_belongs_to_the_user_that_writes_it() -> None:
    """Docker makes a folder that the image lacks as root's."""
    (volume,) = services("compose.yml")["jaxserve"]["volumes"]
    assert f"install --directory --owner=jaxserve --group=jaxserve {volume.split(':')[1]}" in DOCKERFILE


def test_grafana_finds_its_source_and_its_dashboards() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "jaxserve.yml").read_text())["providers"]
    mounts = dict(volume.split(":")[1::-1] for volume in services("compose.yml")["grafana"]["volumes"])
    assert list((DEPLOY / mounts[provider["options"]["path"]]).glob("*.json"))


def test_the_scrape_configurations_differ_in_the_target_only() -> None:
    own, composed = (yaml.safe_load((DEPLOY / f"prometheus{end}.yml").read_text()) for end in ("", "-compose"))
    assert composed["scrape_configs"][0].pop("static_configs") == [{"targets": ["jaxserve:8000"]}]
    own["scrape_configs"][0].pop("static_configs")
    assert own == composed
