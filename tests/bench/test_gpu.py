"""`bench.gpu` goes on after a part's worker has died, hung or lost its device, and its dry run takes the whole way."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.gpu.__main__ import main, run_part
from bench.gpu.report import read, write_report
from bench.gpu.step_times import Step, floors
from bench.gpu.worker import write
from bench.shared.models import LLAMA_1B, LLAMA_8B

ROOT = Path(__file__).parents[2]
WORKER = """
import os, sys, time
from pathlib import Path
from bench.gpu.worker import lines, write
log = Path(sys.argv[1])
begun = {line["item"] for line in lines(log)}
for name, act in ITEMS.items():
    if name in begun:
        continue
    write(log, {"item": name, "began": time.time(), "limit_s": 0.3 if act == "hang" else 60.0})
    if act == "die":
        os._exit(139)
    if act == "hang":
        time.sleep(60)
    write(log, {"item": name, "result": {"s": 1.0, "share": 0.5} | ({"fatal": True} if act == "fault" else {})})
    if act == "fault":
        sys.exit(0)
write(log, {"item": "", "end": True})
"""


def run_fake(out: Path, items: dict[str, str], seconds: float = 30.0) -> dict:
    script = out / "worker.py"
    script.write_text(WORKER.replace("ITEMS", repr(items)))
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[1:] = "
               f"[{str(out / 'kernels.jsonl')!r}]; exec(open({str(script)!r}).read())"]  # fmt: skip
    run_part("kernels", out, command, time.monotonic() + seconds)
    return read(out)["kernels"]


def test_what_dies_or_hangs_is_noted_and_the_rest_is_measured(tmp_path: Path) -> None:
    found = run_fake(tmp_path, {"a": "", "b": "die", "c": "hang", "d": "fault", "e": ""})
    assert list(found) == ["a", "b", "c", "d", "e"]
    assert found["b"] == {"error": "ended: exit status 139"} and "longer than" in found["c"]["error"]
    assert found["a"]["s"] == found["d"]["s"] == found["e"]["s"] == 1.0


def test_a_worker_that_never_starts_is_given_up(tmp_path: Path) -> None:
    run_part("kernels", tmp_path, [sys.executable, "-c", "raise SystemExit(3)"], time.monotonic() + 30)
    assert "does not start" in read(tmp_path)["kernels"]["start"]["error"]


def test_time_that_is_up_ends_a_part(tmp_path: Path) -> None:
    found = run_fake(tmp_path, {"a": "hang"}, seconds=0.3)
    assert "time was up" in str(found)


def test_the_report_says_what_was_not_measured(tmp_path: Path) -> None:
    run_fake(tmp_path, {"decode 64 x 2048": "", "decode 64 x 4096": "die"})
    text = write_report(tmp_path)
    assert "decode 64 x 2048: 85% of copy bandwidth: 50.0% MISSED" in text
    assert "decode 64 x 4096: 85% of copy bandwidth: not measured" in text
    assert json.loads((tmp_path / "results.json").read_text())["parts"]["kernels"]["decode 64 x 2048"]["share"] == 0.5


@pytest.mark.parametrize(("theirs", "verdict"), [(100.0, "4.00 met"), (101.0, "3.96 MISSED"), (None, "not measured")])
def test_four_times_transformers_is_met_or_missed(tmp_path: Path, theirs: float | None, verdict: str) -> None:
    rate = {"output_tokens_per_s": 400.0, "s": 1.0}
    write(tmp_path / "engine.jsonl", {"item": "engine 0.6b", "result": rate})
    peer = {"skipped": "torch not installed"} if theirs is None else rate | {"output_tokens_per_s": theirs}
    write(tmp_path / "engine.jsonl", {"item": "transformers 0.6b", "result": peer})
    text = write_report(tmp_path)
    assert f"4 times transformers' continuous batching: {verdict}" in text
    met, missed = ("met" in verdict), ("MISSED" in verdict)
    assert f"bars: {met:d} met, {missed:d} MISSED, {10 - met - missed} not measured" in text


def test_the_report_does_not_take_cases_that_were_not_run_for_right_ones(tmp_path: Path) -> None:
    for item, result in {
        "a": {"passed": True}, "b": {"passed": False}, "c": {"error": "ended: longer than 45 s"},
        "rest": {"skipped": "the part's time was up"},
    }.items():  # fmt: skip
        write(tmp_path / "correctness.jsonl", {"item": item, "result": result})
    assert (
        "correctness: 1 of 2 cases within their bar; WRONG: b; ENDED IN AN ERROR: c; "
        "not measured: rest (the part's time was up)"
    ) in write_report(tmp_path)


def test_a_report_of_nothing_says_that_nothing_was_measured(tmp_path: Path) -> None:
    text = write_report(tmp_path)
    assert "correctness: not measured" in text and "bars: 0 met, 0 MISSED, 10 not measured" in text


def test_a_step_names_its_floor_and_what_is_not_known(tmp_path: Path) -> None:
    step = {"s": 0.01, "share": 0.8, "floor_s": 0.008, "host_dispatch_s": 1e-3, "command_buffers": None, "compile_s": 3}
    write(tmp_path / "steps.jsonl", {"item": "8b decode 64 x 4096", "result": step})
    text = write_report(tmp_path)
    assert "10.000 ms   80.0% of its floor, floor 8.000 ms, host 1.00 ms, command buffers not measured" in text
    assert "8b decode 64 x 4096: 80% of its floor: 80.0% met" in text


def test_floors_of_the_8b_model() -> None:
    read_bytes, flops = floors(LLAMA_8B, Step(64, 4096, 0))
    weights = 2 * (8_030_261_248 - 128_256 * 4096)  # all parameters but the embedding, of which 64 rows are read
    assert read_bytes == weights + 64 * 4096 * 131_072
    norms = 2 * (2 * 32 + 1) * 4096
    assert flops == (weights - norms) * 64 + 64 * 4096 * 4 * 32 * 32 * 128
    assert floors(LLAMA_1B, Step(1, 0, 0))[0] == 2 * 1_235_814_400  # its embedding is its head


def test_unknown_parts_are_refused(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path), "--parts", "kernels,nothing"]) == 2


@pytest.mark.parametrize(("earlier", "now", "word"), [(True, [], "a dry run"), (False, ["--dry-run"], "a real run")])
def test_figures_of_a_dry_run_are_not_shown_beside_real_ones(
    tmp_path: Path, earlier: bool, now: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "machine.json").write_text(json.dumps({"dry_run": earlier}))
    write(tmp_path / "kernels.jsonl", {"item": "decode 64 x 2048", "result": {"s": 1.0, "share": 0.9}})
    assert main(["--out", str(tmp_path), "--parts", "steps", *now]) == 2
    assert f"holds kernels of {word}" in capsys.readouterr().err and (tmp_path / "kernels.jsonl").exists()


@pytest.mark.slow
def test_a_machine_without_a_gpu_says_so(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path), "--parts", "kernels"]) == 0
    assert "a GPU is needed, or --dry-run" in (tmp_path / "table.txt").read_text()


BLOCKED = ("tqdm", "jinja2", "huggingface_hub", "orbax", "starlette", "uvicorn", "matplotlib", "httpx", "pydantic")
BLOCK = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
"""


@pytest.mark.slow
def test_a_dry_run_takes_the_whole_way_with_few_packages(tmp_path: Path) -> None:
    """Only jax, flax, numpy, safetensors and tokenizers are to be had, as on a bare GPU machine.

    Its programs run for milliseconds: they are compiled quickly.
    """
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / "sitecustomize.py").write_text(BLOCK)
    path = f"{tmp_path / 'block'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    command = [sys.executable, "-m", "bench.gpu", "--dry-run", "--out", str(tmp_path / "out"), "--time", "4"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("JAX_NUMPY")}
    environment = plain | {"PYTHONPATH": path, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())["parts"]
    bad = {name: r["error"] for part in results.values() for name, r in part.items() if "error" in r}
    assert not bad, bad
    assert all(r["passed"] for r in results["correctness"].values()) and len(results["correctness"]) >= 8
    for part, least in (("kernels", 6), ("steps", 4), ("engine", 2)):
        assert sum("s" in r for r in results[part].values()) >= least, part
    assert results["engine"]["engine 8b"]["compilations_after_warmup"] == 0
    assert "A DRY RUN" in done.stdout
    assert not list((tmp_path / "out").glob("dump-*"))
