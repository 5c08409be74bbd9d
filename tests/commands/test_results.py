"""Where results go: made or refused before anything runs."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxserve.cli import main
from jaxserve.commands.results import expect_file, expect_folder, write_text
from jaxserve.core.errors import ConfigError


def test_a_folder_that_is_not_there_is_made(tmp_path: Path) -> None:
    expect_file(tmp_path / "a" / "b" / "x.json")
    expect_folder(tmp_path / "c" / "d")
    expect_file(None)
    expect_folder(None)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("expect", "name", "words"),
    [
        (expect_file, "file/x.json", "file is a file: give a folder"),
        (expect_file, "file/deeper/x.json", "cannot be made"),
        (expect_file, "folder", "folder is a folder: give a file"),
        (expect_folder, "file", "file is a file: give a folder"),
    ],
)
def test_what_is_in_the_way_is_named(tmp_path: Path, expect: Callable[[Path], None], name: str, words: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=words):
        expect(tmp_path / name)


def test_what_may_not_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is root may write everywhere: what the system would answer is said here."""
    monkeypatch.setattr(os, "access", lambda path, mode: path == tmp_path / "mine")
    (tmp_path / "others").touch()
    (tmp_path / "mine").touch()
    with pytest.raises(ConfigError, match="others cannot be written over"):
        expect_file(tmp_path / "others")
    with pytest.raises(ConfigError, match="nothing can be written in"):
        expect_file(tmp_path / "new")
    expect_file(tmp_path / "mine")  # like /dev/stdout: itself, and not its folder, has to bear it


def test_what_cannot_be_written_after_all_is_one_line(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "text")
    assert (tmp_path / "x").read_text() == "text"
    with pytest.raises(ConfigError, match=r"x: cannot be written .Not a directory.: make room"):
        write_text(tmp_path / "x" / "x", "text")


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulate", "--json"],
        ["simulate", "--html"],
        ["simulate", "--requests-out"],
        ["buckets", "--write"],
        ["buckets", "--png"],
        ["tune", "--slo=ttft<1", "--out"],
    ],
)
def test_commands_look_before_they_work(arguments: list[str], trace: Path, monkeypatch, capsys) -> None:
    for name in ("simulate.simulate", "buckets.step_sizes", "tune.search"):
        monkeypatch.setattr(f"jaxserve.commands.{name}", lambda *_, **__: pytest.fail("minutes for nothing"))
    folder, _, name = str(trace).rpartition("/")
    place = str(trace / "x") if arguments[0] != "tune" else str(trace)
    assert main([*arguments, place, "--trace", str(trace), "--num-blocks=400"]) == 2
    assert f"{folder}/{name} is a file: give a folder" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full disk to try")
def test_a_disk_that_fills_up_on_the_way_is_one_line(trace: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    for command in (
        ["simulate", "--requests-out"],
        ["simulate", "--html"],
        ["buckets", "--png"],
        ["buckets", "--write"],
    ):
        assert main([*command, "/dev/full", "--trace", str(trace), "--num-blocks=400"]) == 2
        assert "jaxserve: /dev/full: cannot be written (No space left on device)" in capsys.readouterr().err


def test_commands_make_the_folder(trace: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / "new" / name for name in ("json", "html", "requests-out")}
    options = [f"--{name}={path}" for name, path in files.items()]
    assert main(["simulate", "--trace", str(trace), "--num-blocks=400", *options]) == 0
    assert main(["buckets", "--trace", str(trace), "--num-blocks=400", f"--write={tmp_path}/newer/c.toml"]) == 0
    assert all(path.stat().st_size for path in (*files.values(), tmp_path / "newer" / "c.toml"))


def test_replay_timeline_and_calibrate_look_too(trace: Path, capsys) -> None:
    for arguments in (["replay", "none", "--json"], ["timeline"], ["calibrate"]):
        assert main([*arguments, str(trace / "x")]) == 2
        assert "trace.jsonl is a file: give a folder" in capsys.readouterr().err
