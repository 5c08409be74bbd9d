"""Ours beside its peers, in turn on one machine.

    python -m bench.peers --peer openvino=peer/bin/python --peer llama_cpp=other/bin/python

Machines differ and are noisy: ours and the peers' runs alternate, round after round, and medians are compared. A peer's
environment and its program are described in `bench/peers/NAME.py`.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.shared.flags import file_to_write, folder_to_write
from jaxserve.commands.results import write_text

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = ("llama_cpp", "openvino", "vllm")
"""Modules of this folder."""


def ours(runs: int, scratch: Path) -> dict[str, Any]:
    """One process of `bench.throughput`; the JSON that it writes."""
    file = scratch / "throughput.json"
    _output_of([sys.executable, "-m", "bench.throughput", "--runs", str(runs), "--json", str(file)])
    return json.loads(file.read_text())


def peer(name: str, python: Path, runs: int, scratch: Path) -> list[dict[str, Any]]:
    """One process of `bench/peers/NAME.py`; the lines of JSON that it prints."""
    command = [str(python), "-m", f"bench.peers.{name}", "--runs", str(runs), "--weights", str(scratch)]
    return [json.loads(line) for line in _output_of(command).splitlines() if line.startswith("{")]


def _output_of(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def named(text: str) -> tuple[str, Path]:
    """ "openvino=peer/bin/python" as the peer's name and its Python, which may also be one of the PATH."""
    name, _, python = text.partition("=")
    if name not in NAMES or not python:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PYTHON; the peers are {', '.join(NAMES)}")
    found = shutil.which(Path(python).expanduser())
    if found is None:
        raise argparse.ArgumentTypeError(
            f"{text!r}: {python} is no program; bench/peers/{name}.py says what to install"
        )
    return name, Path(found).absolute()  # not resolved: a link of an environment is what makes it one


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=named, action="append", required=True, metavar="NAME=PYTHON",
                        help=f"a peer ({', '.join(NAMES)}) and the Python that has it; repeatable")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="times that all of them take turns (default 3)")
    parser.add_argument("--runs", type=int, default=3, help="counted runs a round and engine (default 3)")
    parser.add_argument("--scratch", type=folder_to_write, default=Path("out/peers"),
                        help="where the peers' models are kept")  # fmt: skip
    parser.add_argument("--json", type=file_to_write, help="write the figures here as well")
    given = parser.parse_args(arguments)
    names = [name for name, _ in given.peer]
    if len(set(names)) < len(names):
        parser.error(f"--peer: {max(names, key=names.count)} is given twice: give each peer once")
    return given


def main() -> None:
    arguments = parse()
    scratch = arguments.scratch.absolute()
    scratch.mkdir(parents=True, exist_ok=True)
    rounds = []
    for _ in range(arguments.rounds):
        mine = ours(arguments.runs, scratch)
        theirs = {name: peer(name, python, arguments.runs, scratch) for name, python in arguments.peer}
        rounds.append({"ours": mine, "peers": theirs})
        print(_line(mine, theirs), flush=True)
    machine = rounds[0]["ours"]["machine"]
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}; medians, output tokens a second")
    mine = statistics.median(run["tokens_per_s"] for r in rounds for run in r["ours"]["runs"])
    print(f"{'jaxserve':<40} {mine:6.0f}")
    medians = {"jaxserve": mine}
    for name, _ in arguments.peer:
        medians[name] = statistics.median(run["tokens_per_s"] for r in rounds for run in r["peers"][name])
        title = rounds[0]["peers"][name][0]["peer"]
        print(f"{title:<40} {medians[name]:6.0f}   jaxserve at {mine / medians[name]:.2f} of it")
    if arguments.json:
        write_text(arguments.json, json.dumps({"rounds": rounds, "medians": medians}, indent=1) + "\n")


def _line(mine: dict[str, Any], theirs: dict[str, list[dict[str, Any]]]) -> str:
    rates = {name: statistics.median(run["tokens_per_s"] for run in runs) for name, runs in theirs.items()}
    each = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
    return (
        f"jaxserve {mine['median']['tokens_per_s']:.0f}, {each}; float32 matmul "
        f"{mine['matmul_gflops_64_rows']:.0f} GFLOP/s at 64 rows, {mine['matmul_gflops_512_rows']:.0f} at 512"
    )


if __name__ == "__main__":
    main()
