"""Plots: PNG files, or the way to what is missing, before the work."""

from pathlib import Path

import pytest

from bench.compare import chunks, command
from jaxserve.cli import main
from jaxserve.commands import plots
from jaxserve.core.errors import ConfigError


def test_a_plot_is_a_png_whatever_its_name(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("new/a.png", "b.svg", "c.plot"):
        with plots.plot(tmp_path / name, "A line", "made up") as axes:
            axes.plot([1, 2], [3, 4])
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"


def test_what_is_missing_is_said_before_the_work(trace: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    monkeypatch.setattr("jaxserve.commands.buckets.step_sizes", lambda *_: pytest.fail("minutes for nothing"))
    monkeypatch.setattr(command, "run", lambda *_: pytest.fail("minutes for nothing"))
    assert main(["buckets", "--trace", str(trace), "--num-blocks=400", f"--png={tmp_path}/a.png"]) == 2
    assert command.main(chunks.BENCH, ["--simulate", f"--png={tmp_path}"]) == 2
    assert capsys.readouterr().err.count("plots need matplotlib: pip install 'jaxserve[bench]'") == 2
    plots.expect_plots(None)


def test_a_place_that_cannot_be_is_one_line(trace: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ConfigError, match="is a file"), plots.plot(trace / "a.png", "A line"):
        pass
