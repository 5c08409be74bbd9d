"""Everything that only a GPU can tell: `python -m bench.gpu --out bench/results/MACHINE`, under eight minutes.

    correctness   every kernel against float64, fresh random inputs
    kernels       decode and prefill kernels over rows and context, beside this machine's bandwidth and matmul rate
    steps         whole steps of an 8B and a 1B model, beside the least time they could take
    engine        256 requests offline; and transformers' continuous batching, where it is installed
    shipping      this GPU's compile target; whether an executable made without a GPU loads here

Each part runs in processes of its own and has its own time: what faults, hangs or takes too long is noted, and the
rest goes on. Results are on disk as soon as they are measured. `--parts steps --time 4` runs some parts again, for
longer; `--report` draws the table and the pictures of what is there. `--dry-run` goes the same way on a CPU, with tiny
shapes: its figures mean nothing.
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu.report import write_report
from bench.gpu.worker import MODULES, lines, write
from jaxserve.commands.results import expect_folder
from jaxserve.core.errors import ConfigError

BUDGETS = {"correctness": 95.0, "kernels": 70.0, "steps": 125.0, "engine": 135.0, "shipping": 40.0}
"""Seconds of each part; what one leaves is the next one's. Together less than eight minutes."""


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    out: Path = given.out
    if given.report and not any(out.glob("*.jsonl")):
        print(f"bench.gpu: {out} holds no results: give the --out of a run", file=sys.stderr)
        return 2
    if given.report:
        print(write_report(out))
        return 0
    try:
        expect_folder(out)
    except ConfigError as error:
        print(f"bench.gpu: {error}", file=sys.stderr)
        return 2
    seed = secrets.randbelow(2**31) if given.seed is None else given.seed
    wanted = given.parts.split(",") if given.parts else list(MODULES)
    if unknown := set(wanted) - set(MODULES):
        print(f"bench.gpu: unknown parts {', '.join(sorted(unknown))}; known: {', '.join(MODULES)}", file=sys.stderr)
        return 2
    if kept := _kept_of_another_kind(out, wanted, given.dry_run):
        kind = "a real run" if given.dry_run else "a dry run, whose figures mean nothing"
        print(f"bench.gpu: {out} holds {', '.join(kept)} of {kind}: give another --out", file=sys.stderr)
        return 2
    for name in wanted:
        for kind in ("jsonl", "log"):
            (out / f"{name}.{kind}").unlink(missing_ok=True)
    begin = time.monotonic()
    _describe(out, seed, given.dry_run)
    deadline = begin
    with tempfile.TemporaryDirectory(prefix="jaxserve-bench-") as cache:
        for name in wanted:
            deadline += BUDGETS[name] * given.time
            print(f"{name}: until {deadline - begin:.0f} s, now {time.monotonic() - begin:.0f} s", flush=True)
            command = [sys.executable, "-m", "bench.gpu_worker", name, str(out), str(seed), "--cache", cache]
            run_part(name, out, command + ["--dry-run"] * given.dry_run, deadline)
    for name in wanted:
        shutil.rmtree(out / f"dump-{name}", ignore_errors=True)
    print(write_report(out))
    print(f"seed {seed}, {time.monotonic() - begin:.0f} s; results in {out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--parts", help=f"some of {','.join(MODULES)} (default: all)")
    parser.add_argument("--seed", type=int, help="draw the random inputs of an earlier run again")
    parser.add_argument("--time", type=float, default=1.0, help="stretch every part's time by this factor")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, the same way through the code")
    parser.add_argument("--report", action="store_true", help="only draw the report of the results in --out")
    return parser


def _kept_of_another_kind(out: Path, wanted: list[str], dry_run: bool) -> list[str]:
    """Parts of an earlier run in `out` that this run does not replace, if one is a dry run and the other is not."""
    machine = out / "machine.json"
    earlier = json.loads(machine.read_text()).get("dry_run", False) if machine.exists() else dry_run
    return [name for name in MODULES if earlier != dry_run and name not in wanted and (out / f"{name}.jsonl").exists()]


def _describe(out: Path, seed: int, dry_run: bool) -> None:
    """The machine and versions, in a process that lets go of the GPU."""
    code = (
        "import json, sys; from bench.shared.machine import describe; "
        f"json.dump(describe() | {{'seed': {seed}, 'dry_run': {dry_run}}}, open(sys.argv[1], 'w'), indent=1)"
    )
    environment = os.environ | ({"JAX_PLATFORMS": "cpu"} if dry_run else {})
    command = [sys.executable, "-c", code, str(out / "machine.json")]
    try:
        subprocess.run(command, env=environment, timeout=60, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        print(f"the machine could not be described: {error}", file=sys.stderr)


def run_part(name: str, out: Path, command: list[str], deadline: float) -> None:
    """Run a part's worker, again after one that died or hung, until it is done or its time is up.

    `deadline` by `time.monotonic()`. The worker writes to `out / name.jsonl`, and goes on where that ends.
    """
    log = out / f"{name}.jsonl"
    silent_starts = 0
    while time.monotonic() < deadline:
        known = len(lines(log))
        with (out / f"{name}.log").open("a") as output:
            worker = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
            reason = _watch(worker, log, deadline)
        records = lines(log)
        if any(record.get("end") for record in records):
            return
        _close_last(log, records, reason)
        silent_starts = silent_starts + 1 if len(records) == known else 0
        if silent_starts == 2:
            write(log, {"item": "start", "result": {"error": f"the worker does not start ({reason}); see {name}.log"}})
            return
    write(log, {"item": "rest", "result": {"skipped": "the part's time was up"}})


def _watch(worker: subprocess.Popen, log: Path, deadline: float) -> str:
    """Wait for the worker; end it, and say why, when its item or the part takes too long."""
    while True:
        try:
            return f"exit status {worker.wait(timeout=0.25)}"
        except subprocess.TimeoutExpired:
            reason = _overdue(lines(log), deadline)
        if reason:
            os.killpg(worker.pid, signal.SIGKILL)  # its own session: what it started ends with it
            worker.wait()
            return reason


def _overdue(records: list[dict[str, Any]], deadline: float) -> str | None:
    if time.monotonic() > deadline:
        return "the part's time was up"
    last = records[-1] if records else {}
    if "began" in last and time.time() - last["began"] > last["limit_s"]:
        return f"longer than {last['limit_s']:.0f} s"
    return None


def _close_last(log: Path, records: list[dict[str, Any]], reason: str) -> None:
    """An item that was begun and did not end gets a result that says why."""
    if records and "began" in records[-1]:
        write(log, {"item": records[-1]["item"], "result": {"error": f"ended: {reason}"}})


if __name__ == "__main__":
    sys.exit(main())
