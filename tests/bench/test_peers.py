"""Which peers `bench.peers` runs, and what it says of those that it cannot run."""

import os
import sys
from pathlib import Path

import pytest

from bench.peers.__main__ import NAMES, parse
from bench.peers.vllm import environment
from tests.test_floors import loaded_after

HERE = Path(sys.executable)


def test_a_peer_needs_neither_jax_nor_jaxserve() -> None:
    for name in NAMES:
        assert not loaded_after(f"import bench.peers.{name}") & {"jax", "jaxserve"}


def test_a_peer_and_its_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A path from here, one from home, a name of the PATH; a link stays one, or it would leave its environment."""
    (tmp_path / "bin").mkdir()
    link = tmp_path / "bin" / "own-python"
    link.symlink_to(HERE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for way in ("bin/own-python", "~/bin/own-python", str(link), "own-python"):
        assert parse([f"--peer=openvino={way}"]).peer == [("openvino", link)]
    both = parse(["--peer", f"openvino={link}", "--peer", f"llama_cpp={HERE}"])
    assert both.peer == [("openvino", link), ("llama_cpp", HERE)]


@pytest.mark.parametrize(
    ("peers", "words"),
    [
        ([], "--peer"),
        (["openvino"], "'openvino' is not NAME=PYTHON; the peers are llama_cpp, openvino, vllm"),
        (["openvino="], "is not NAME=PYTHON"),
        (["=python3"], "is not NAME=PYTHON"),
        (["sglang=python3"], "the peers are llama_cpp, openvino, vllm"),
        (["openvino=/no/such/python"], "/no/such/python is no program; bench/peers/openvino.py says what to install"),
        ([f"openvino={__file__}"], "is no program"),
        ([f"openvino={HERE}", f"llama_cpp={HERE}", f"openvino={HERE}"], "openvino is given twice"),
    ],
    ids=str,
)
def test_what_cannot_run_is_said_before_anything_does(
    peers: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse([f"--peer={peer}" for peer in peers])
    assert words in capsys.readouterr().err


def test_vllm_starts_with_both_cores_and_its_openmp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is set outside stays, and a process that has it all needs no other one."""
    library = tmp_path / "lib" / "libiomp5.so"
    library.parent.mkdir()
    library.touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    wanted = environment()
    assert str(library) in wanted["LD_PRELOAD"].split(":")
    assert wanted["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))
    assert wanted["VLLM_CPU_KVCACHE_SPACE"] == "7"
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    assert environment() == dict(os.environ)
