"""Settings from flags: those without effect are named, beside what the command prints."""

from pathlib import Path

import pytest

from jaxserve.cli import main

IDLE = ["--requests=3", "--num-blocks=40", "--policy=continuous", "--chunk-size=16"]


def test_what_has_no_effect_is_said_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *IDLE, "--json=-"]) == 0
    found = capsys.readouterr()
    assert found.err.startswith("jaxserve: note: chunk_size = 16 has no effect with policy = 'continuous'")
    assert found.out.startswith("{")


def test_tune_may_yet_choose_what_gives_it_an_effect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = ["--only-chosen", "--choose=policy=chunked/fcfs", "--jobs=1", f"--out={tmp_path}", "--slo=ttft<9"]
    assert main(["tune", *IDLE, *search]) == 0
    assert "note" not in capsys.readouterr().err
