"""Results beside older ones: figures, who is alone, and what was not the same."""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.shared import results_file
from jaxserve.core.errors import ConfigError

COLUMNS = (("chunk", "name"), ("TTFT ms", "ttft_s"))


def result(path: Path, rows: dict[str, float], cost: str | None = "a roofline", **arguments: Any) -> dict[str, Any]:
    found = results_file.record(
        "chunks", argparse.Namespace(json=path, **arguments), [{"name": n, "ttft_s": s} for n, s in rows.items()],
        seeds=[1], cost_model=cost,
    )  # fmt: skip
    results_file.write(path, found)
    return found


def test_a_file_beside_itself_differs_in_nothing(tmp_path: Path) -> None:
    new = result(tmp_path / "new" / "a.json", {"64": 0.5}, seeds=(1, 2), requests=9)
    old = results_file.read(tmp_path / "new" / "a.json", "chunks")
    assert results_file.differences(new, old) == []
    assert "not the same" not in results_file.against(new, old, COLUMNS)


def test_what_makes_two_runs_unlike_is_named(tmp_path: Path) -> None:
    new = result(tmp_path / "a.json", {"64": 0.5, "128": 1.0}, requests=9, seeds=(1,), quick=False)
    old = result(tmp_path / "b.json", {"64": 1.0, "32": 1.0}, "a calibration", requests=3, seeds=[1])
    old["machine"]["cores"] = 96
    old["versions"]["numpy"] = "1.0"
    text = results_file.against(new, old, COLUMNS)
    assert "only this: 128\nonly that: 32\n" in text and "64  TTFT ms   500  1,000" in text
    assert "not the same: cost_model: a roofline, and a calibration there" in text
    assert "not the same: requests: 9, and 3 there" in text and ", and 96 there" in text and ", and 1.0 there" in text
    assert text.count("not the same") == 4, "not where the file lies, nor a flag that was not there yet"


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        ("throughput", ["--json"]), ("start", ["--json"]), ("http", ["--json"]), ("compile.__main__", ["--json"]),
        ("peers.__main__", [f"--peer=openvino={sys.executable}", "--json"]), ("fidelity.__main__", ["--json"]),
        ("peers.__main__", [f"--peer=openvino={sys.executable}", "--scratch"]), ("gpu.__main__", ["--out"]),
        ("serve.__main__", ["http://127.0.0.1:9", "--json"]), ("tuning", ["--json"]), ("soak.__main__", ["--keep"]),
        ("scenarios.__main__", ["S1", "--out"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1],
)  # fmt: skip
def test_every_command_looks_first_where_its_results_go(
    module: str, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", [module, *flags, str(tmp_path / "file" / "results")])
    try:
        status = importlib.import_module(f"bench.{module}").main()
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr().err
    assert status == 2 and (
        "file is a file: give a folder" in said or "results cannot be made (Not a directory)" in said
    )


def test_a_place_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file is a file"):
        result(tmp_path / "file" / "a.json", {})
