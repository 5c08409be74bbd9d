"""`bench.compile` compiles for a GPU that is not here, and says what is wrong. It needs JAX's CUDA plugin."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxserve.runtime.compile_only import has_compiler

ROOT = Path(__file__).parents[2]
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


@needs_plugin
def test_a_small_model_compiles_for_an_h200(tmp_path: Path) -> None:
    done = run("--small", "--only", "steps", "--models", "1b", "--json", str(tmp_path / "rows.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert len(rows) == 2 and all(row["aliased"] > 1 << 30 and row["kernels"] > 0 for row in rows)
