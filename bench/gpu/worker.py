"""One part of `bench.gpu` in a process of its own: `python -m bench.gpu_worker PART OUT SEED [--cache DIR]`.

Writes a line of JSON before and after each item to OUT/PART.jsonl, and leaves out what stands there already, so that
the parent can end a process that hangs, or that a faulting kernel has killed, and start another for the rest.
"""

import argparse
import importlib
import json
import os
import time
import traceback
from pathlib import Path
from typing import Any

from kernels_pallas.interpreter_threads import make_room_for_interpreter

MODULES = {
    "correctness": "correctness",
    "kernels": "kernel_times",
    "steps": "step_times",
    "engine": "engine_rate",
    "shipping": "shipping",
}
FATAL = ("CUDA_ERROR", "ILLEGAL_ADDRESS", "ILLEGAL INSTRUCTION", "LAUNCH FAILURE", "MISALIGNED", "UNSPECIFIED LAUNCH")
"""What JAX's error says when the device no longer takes work from this process."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_worker", description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=MODULES)
    parser.add_argument("out", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("--cache", help="folder of compiled programs")
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    if given.dry_run:
        os.environ["JAX_PLATFORMS"] = "cpu"
        make_room_for_interpreter()
    if given.part in ("steps", "shipping"):  # what XLA says of command buffers and of its target
        dump = given.out / f"dump-{given.part}"
        dump.mkdir(parents=True, exist_ok=True)
        os.environ["JAXSERVE_BENCH_DUMP"] = str(dump)
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={dump}".strip()
    log = given.out / f"{given.part}.jsonl"
    begun = {line["item"] for line in lines(log)}
    if not given.dry_run and (reason := _no_gpu()):
        write(log, {"item": "start", "result": {"error": reason}})
        write(log, {"item": "", "end": True})
        return
    _use_cache(given.cache)
    from bench.gpu.part import Setting

    part = importlib.import_module(f"bench.gpu.{MODULES[given.part]}")
    for item in part.items(Setting(given.dry_run, given.seed, str(given.out))):
        if item.name not in begun:
            write(log, {"item": item.name, "began": time.time(), "limit_s": item.limit_s})
            result = _attempt(item.run)
            write(log, {"item": item.name, "result": result})
            if "fatal" in result:
                return
    write(log, {"item": "", "end": True})


def _no_gpu() -> str | None:
    """Why this process would not run on a GPU: JAX falls back to the CPU with no more than a warning."""
    import jax

    try:
        platform = jax.devices()[0].platform
    except RuntimeError as error:
        return f"JAX finds no device: {error}"
    return None if platform in ("gpu", "cuda") else f"JAX runs on {platform!r} here: a GPU is needed, or --dry-run"


def _use_cache(folder: str | None) -> None:
    """Programs, and XLA's choices among its own matmul kernels, shared by the parts of a run."""
    if folder:
        from jaxserve.runtime.programs.compilation import use_compilation_cache

        use_compilation_cache(folder)


def _attempt(run: Any) -> dict[str, Any]:
    begin = time.perf_counter()
    try:
        result = run()
    except Exception as error:
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}"[:1500]}
        if any(word in str(error).upper() for word in FATAL):
            result["fatal"] = True  # the context is gone: only a new process can go on
    return result | {"took_s": time.perf_counter() - begin}


def write(log: Path, record: dict[str, Any]) -> None:
    with log.open("a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def lines(log: Path) -> list[dict[str, Any]]:
    """The records of a log; a line that was cut off is left out."""
    records = []
    for line in log.read_text().splitlines() if log.exists() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
