"""The image and the compose file, as far as they can be tried without a Docker engine: what they name is there."""

import re
from pathlib import Path

import yaml

from jaxserve.cli import _parser

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
ROOT = DEPLOY.parent


def test_what_the_image_copies_exists_and_its_command_is_one() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / name).exists() for name in line.split())
    command = re.search(r"^CMD (\[.*\])$", text, re.MULTILINE)
    assert command is not None
    _parser().parse_args(yaml.safe_load(command.group(1)))


def test_what_the_compose_file_mounts_and_runs_exists() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yml").read_text())["services"]
    assert set(services) == {"jaxserve", "prometheus", "grafana"}
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), "loopback only"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (DEPLOY / source).exists()
    _parser().parse_args(services["jaxserve"]["command"])
    assert (DEPLOY / services["prometheus"]["command"][0].split("/")[-1]).exists()


def test_the_scrape_configurations_differ_in_the_target_only() -> None:
    own, composed = (yaml.safe_load((DEPLOY / f"prometheus{end}.yml").read_text()) for end in ("", "-compose"))
    assert composed["scrape_configs"][0].pop("static_configs") == [{"targets": ["jaxserve:8000"]}]
    own["scrape_configs"][0].pop("static_configs")
    assert own == composed
