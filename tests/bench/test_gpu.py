"""`bench.gpu` goes on after a part's worker has died, hung or lost its device, and its dry run takes the whole way."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.gpu import main, run_part
from bench.gpu_parts.step_times import Step, floors
from bench.gpu_report import read, write_report
from bench.models import LLAMA_1B, LLAMA_8B

ROOT = Path(__file__).parents[2]
WORKER = """
import os, sys, time
from pathlib import Path
from bench.gpu_worker import lines, write
log = Path(sys.argv[1])
begun = {line["item"] for line in lines(log)}
for name, act in ITEMS.items():
    if name in begun:
        continue
    write(log, {"item": name, "began": time.time(), "limit_s": 0.6})
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


def test_floors_of_the_8b_model() -> None:
    read_bytes, flops = floors(LLAMA_8B, Step(64, 4096, 0))
    weights = 2 * (8_030_261_248 - 128_256 * 4096)  # all parameters but the embedding, of which 64 rows are read
    assert read_bytes == weights + 64 * 4096 * 131_072
    assert flops == weights * 64 + 64 * 4096 * 4 * 32 * 32 * 128
    assert floors(LLAMA_1B, Step(1, 0, 0))[0] == 2 * 1_235_814_400  # its embedding is its head


def test_unknown_parts_are_refused(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path), "--parts", "kernels,nothing"]) == 2


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
    """Only jax, flax, numpy, safetensors and tokenizers are to be had, as on a bare GPU machine."""
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / "sitecustomize.py").write_text(BLOCK)
    path = f"{tmp_path / 'block'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    command = [sys.executable, "-m", "bench.gpu", "--dry-run", "--out", str(tmp_path / "out"), "--time", "4"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("JAX_NUMPY")}
    done = subprocess.run(command, cwd=ROOT, env=plain | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())["parts"]
    bad = {name: r["error"] for part in results.values() for name, r in part.items() if "error" in r}
    assert not bad, bad
    assert all(r["passed"] for r in results["correctness"].values()) and len(results["correctness"]) >= 8
    for part, least in (("kernels", 6), ("steps", 4), ("engine", 2)):
        assert sum("s" in r for r in results[part].values()) >= least, part
    assert results["engine"]["engine 8b"]["compilations_after_warmup"] == 0
    assert "A DRY RUN" in done.stdout
