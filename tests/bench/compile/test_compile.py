"""`bench.compile` compiles for a GPU that is not here, and says what is wrong. It needs JAX's CUDA plugin."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.compile import __main__ as command
from bench.compile import kernel_report
from jaxserve.runtime.programs.compile_only import has_compiler

ROOT = Path(__file__).parents[3]
needs_plugin = pytest.mark.skipif(not has_compiler(), reason="JAX's CUDA plugin is not installed (make cuda)")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "bench.compile", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


def test_an_unknown_target_is_an_error() -> None:
    done = run("--target", "h900")
    assert done.returncode == 2 and "'h900' is not known" in done.stderr


@pytest.mark.skipif(has_compiler(), reason="the plugin is installed")
def test_without_the_plugin_it_says_what_to_install() -> None:
    done = run("--small")
    assert done.returncode == 2 and "make cuda" in done.stderr


def fake_run(*problems: str):
    """What stands for `CompileRun`: one program, with these problems."""
    row = SimpleNamespace(name="8b step", problems=problems)
    run = SimpleNamespace(rows=[row], kernels=lambda *a, **k: None, steps=lambda *a, **k: None)
    return SimpleNamespace(CompileRun=lambda *a: run)


@pytest.mark.parametrize(("problems", "status"), [((), 0), (("paged_decode spills 8 bytes",), 1)])
def test_a_problem_is_named_and_is_exit_status_1(
    problems: tuple[str, ...], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "bench.compile.ahead_of_time", fake_run(*problems))
    monkeypatch.setattr(kernel_report, "dump_to", lambda folder: None)
    assert command.main(["--target", "h200"]) == status
    text = capsys.readouterr().out
    assert f"1 programs for NVIDIA H200, {len(problems)} with problems" in text
    assert all(f"8b step: {problem}" in text for problem in problems)


PLANTED = {
    "spills": ("PREFILL[256, 1] = 64, 1, 2", "Problem(256, 4, 64, 'bfloat16', 'int8')", r"spills [1-9]\d* bytes"),
    "too few blocks": ("DECODE[128, 2] = 128, 3", "Problem(128, 4, 64, 'bfloat16', 'bfloat16')", "1 blocks of .*SM"),
    "a cache that is not given away": (
        "jit = jax.jit; jax.jit = lambda f, **k: jit(f, **{n: v for n, v in k.items() if n != 'donate_argnums'})",
        "", "0 of the cache's [0-9]+ bytes are aliased; makes [0-9]+ arrays as large as a cache's: .*copy",
    ),
    "temporaries": ("ahead_of_time.SLACK = -1 << 40", "", "temporaries [0-9]+ MiB, more than -"),
}  # fmt: skip


@needs_plugin
@pytest.mark.slow
@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_fault_is_exit_status_1(what: str, tmp_path: Path) -> None:
    fault, problem, words = PLANTED[what]
    script = f"""
import sys, tempfile
from pathlib import Path
from bench.compile import kernel_report
folder = Path(tempfile.mkdtemp(dir=sys.argv.pop(1)))
kernel_report.dump_to(folder)  # before JAX is loaded, so not where `main` has it
import jax
from bench.compile import __main__ as command, ahead_of_time
from kernels_pallas.paged_attention.mosaic_gpu.tile_table import DECODE, PREFILL
from kernels_pallas.paged_attention.options import Problem
kernel_report.dump_to = lambda _: None
take = ahead_of_time.take_dump
ahead_of_time.take_dump = lambda _, capability: take(folder, capability)
{fault}
ahead_of_time.small_problems = lambda: [{problem}]
sys.exit(command.main(sys.argv[1:]))
"""
    only = "kernels" if problem else "steps"
    command = [sys.executable, "-c", script, str(tmp_path), "--small", "--only", only, "--models", "1b"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 1 and re.search(words, done.stdout), done.stdout + done.stderr


@needs_plugin
@pytest.mark.parametrize("kv_dtype", ["auto", "float8_e4m3fn", "int8"])
def test_a_small_model_compiles_for_an_h200(tmp_path: Path, kv_dtype: str) -> None:
    """Exit status 0: the cache is aliased to the last byte, and nothing makes another array like it."""
    done = run(
        "--small", "--only", "steps", "--models", "1b", "--kv-cache-dtype", kv_dtype,
        "--json", str(tmp_path / "rows.json"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["name"]: row for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert len(rows) == 5 and all(row["kernels"] > 0 for row in rows.values())
    assert all(row["aliased"] > 1 << 29 for name, row in rows.items() if not re.search("gather|score", name))
