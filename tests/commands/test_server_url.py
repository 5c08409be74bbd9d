"""Addresses of servers: taken as they are typed, or refused in one line."""

import pytest

from jaxserve.cli import main
from jaxserve.commands.server_url import server_url
from jaxserve.core.errors import ConfigError


def test_an_address_loses_its_last_slash() -> None:
    assert server_url("http://127.0.0.1:8000/") == "http://127.0.0.1:8000"
    assert server_url("https://[::1]:8000/behind/a/proxy") == "https://[::1]:8000/behind/a/proxy"


@pytest.mark.parametrize(
    "text", ["", "nonsense", "localhost:8000", "http://", "http://:8000", "http://a:port", "http://a:99999", "ftp://a"]
)
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"give http://HOST:PORT"):
        server_url(text)


@pytest.mark.parametrize("command", [["doctor", "nonsense"], ["timeline", "out.json", "--url=nonsense"]])
def test_commands_refuse_it(command: list[str], tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    assert "url = 'nonsense' cannot work" in capsys.readouterr().err
