"""`jaxserve buckets`: a set that wastes less than powers of two, in a file that the engine takes."""

import re
from pathlib import Path

import pytest

from jaxserve.cli import main
from jaxserve.core.buckets import BucketTable
from jaxserve.core.config import EngineConfig

LIMITS = ["--num-blocks=500", "--max-num-seqs=16", "--max-num-batched-tokens=256", "--no-enable-prefix-caching"]


def run(trace: Path, *more: str) -> int:
    return main(["buckets", "--trace", str(trace), "--cost=cpu_tiny_3M", *LIMITS, *more])


def test_it_beats_powers_of_two_and_writes_a_configuration(trace: Path, tmp_path: Path, capsys) -> None:
    assert run(trace, "--programs=10", "--objective=tokens", "--write", str(tmp_path / "c.toml")) == 0
    text = capsys.readouterr().out
    lost = {
        name: float(re.search(rf"{name} +\d+ +[\d.]+% +([\d.]+)%", text)[1])  # type: ignore[index]
        for name in ("fitted", "powers of two", "as configured")
    }
    assert lost["fitted"] < lost["powers of two"] and "measured: 4 layers" in text
    curve = re.findall(r"^ *(\d+) +[\d.]+% +([\d.]+)% +\S+ +([\d.]+)% +\d+$", text, re.M)
    assert len(curve) > 3 and all(float(fitted) <= float(twos) for _, fitted, twos in curve)
    assert float(curve[-1][2]) == lost["powers of two"]
    config = EngineConfig.from_toml(tmp_path / "c.toml")
    assert config.scheduler.max_num_seqs == 16
    assert 3 <= len(BucketTable.from_config(config.buckets, config.scheduler).all()) <= 10


def test_a_set_ends_at_the_limits_where_the_configured_buckets_go_beyond(trace: Path, tmp_path: Path) -> None:
    base, fitted = tmp_path / "base.toml", tmp_path / "c.toml"
    base.write_text("[buckets]\ndecode_buckets = [8, 64]\nprefill_buckets = [512]\nmixed_decode_buckets = [64]\n")
    assert run(trace, f"--config={base}", "--programs=6", f"--write={fitted}") == 0
    buckets = EngineConfig.from_toml(fitted).buckets
    assert buckets.decode_buckets[-1] == buckets.mixed_decode_buckets[-1] == 16 and buckets.prefill_buckets[-1] == 256


def test_the_time_to_compile_bounds_the_programs(trace: Path, tmp_path: Path, capsys) -> None:
    options = ["--compile-s=5", "--compile-budget=32"]
    assert run(trace, *options, "--write", str(tmp_path / "c.toml")) == 0
    config = EngineConfig.from_toml(tmp_path / "c.toml")
    assert len(BucketTable.from_config(config.buckets, config.scheduler).all()) <= 6


def test_any_time_to_compile_leaves_programs_to_bound_them(trace: Path, capsys) -> None:
    assert run(trace, "--programs=5", "--compile-budget=inf") == 0
    assert "compile s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--programs=2"], "at least 3"),
        (["--compile-budget=3"], "at least 6 s"),
        (["--compile-budget=nan"], "at least 6 s"),
        (["--cost=nothing"], "h200_8b_nominal"),
        (["--prefill-multiple=0"], "prefill_multiple = 0"),
    ],
)
def test_what_cannot_work_says_what_can(trace: Path, options: list[str], words: str, capsys) -> None:
    assert run(trace, *options) == 2
    assert words in capsys.readouterr().err


def test_the_plot_is_drawn(trace: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert run(trace, "--png", str(tmp_path / "gain.png")) == 0
    assert (tmp_path / "gain.png").read_bytes()[:4] == b"\x89PNG"
