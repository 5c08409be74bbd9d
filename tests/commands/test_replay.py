"""`jaxserve replay`: exact, what if, and what is refused."""

import json
from pathlib import Path

import pytest

from jaxserve.cli import main
from jaxserve.core.clock import VirtualClock
from jaxserve.core.config import EngineConfig
from jaxserve.costs.file import find_cost
from jaxserve.sim.build import simulated
from jaxserve.sim.drive import drive
from jaxserve.sim.recorder import Recorder
from jaxserve.sim.traces import read_trace


@pytest.fixture
def record(trace: Path, tmp_path: Path) -> Path:
    config = EngineConfig.from_settings(num_blocks=200, max_num_seqs=8, max_num_batched_tokens=64)
    clock, cost = VirtualClock(), find_cost("h200_8b_nominal")
    engine = simulated(config, cost, clock).engine
    with (tmp_path / "record.jsonl").open("w") as file:
        engine.observers.append(recorder := Recorder(file, config, 201, 4000, 0.0, cost=cost))
        list(drive(engine, clock, read_trace(trace)))
        recorder.close()
    return tmp_path / "record.jsonl"


def test_a_record_runs_again(record: Path, capsys) -> None:
    path = record.parent / "new" / "r.json"
    assert main(["replay", str(record), "--json", str(path)]) == 0
    assert "60 requests" in (out := capsys.readouterr().out) and "100.00% decided as recorded" in out
    assert f"wrote {path}" in out and json.loads(path.read_text())["share"] == 1.0


def test_decisions_that_differ_are_shown_and_fail(record: Path, capsys) -> None:
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    for line in lines:
        if "request" in line and line["request"] > 5:
            line["queued_s"] += 0.05
    record.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    assert main(["replay", str(record)]) == 1
    assert "the first that differs: step" in capsys.readouterr().out


def test_what_if(record: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "whatif.json"
    arguments = ["--max-num-seqs", "1", "--slo", "ttft<0.1", "--json", str(path)]
    assert main(["replay", str(record), *arguments]) == 0
    out = capsys.readouterr().out
    assert "60 requests served by both" in out and "measured: fitted to" in out
    stored = json.loads(path.read_text())
    assert stored["settings"] == {"max_num_seqs": 1} and stored["differences"]["ttft mean"]["difference"] > 0.0


def test_what_changes_nothing_is_said(record: Path, capsys) -> None:
    assert main(["replay", str(record), "--batch-size", "8"]) == 0
    assert "note: batch_size = 8 has no effect with policy = 'chunked'" in capsys.readouterr().err


def test_a_record_can_be_simulated(record: Path, capsys) -> None:
    assert main(["simulate", "--trace", str(record), "--num-blocks", "200", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["all"]["requests"]["completed"] == 60


def test_what_cannot_work_is_said(record: Path, trace: Path, capsys) -> None:
    for arguments, words in (
        (["none"], "cannot be read"),
        ([str(trace)], "no record of version 1"),
        ([str(record), "--slo", "ttft<1"], "give a setting that changes"),
        ([str(record), "--max-num-seqs", "1", "--slo", ""], "no objective"),
    ):
        assert main(["replay", *arguments]) == 2
        assert words in capsys.readouterr().err
