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
@pytest.mark.parametrize("kv_dtype", ["auto", "float8_e4m3fn", "int8"])
def test_a_small_model_compiles_for_an_h200(tmp_path: Path, kv_dtype: str) -> None:
    """Exit status 0: the cache is aliased to the last byte, and nothing makes another array like it."""
    done = run(
        "--small", "--only", "steps", "--models", "1b", "--kv-cache-dtype", kv_dtype,
        "--json", str(tmp_path / "rows.json"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["name"]: row for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert len(rows) == 4 and all(row["kernels"] > 0 for row in rows.values())
    assert all(row["aliased"] > 1 << 29 for name, row in rows.items() if "gather" not in name)
