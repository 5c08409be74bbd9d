"""Ours beside a peer, in turn on one machine: `python -m bench.peers --peer-python peer/bin/python`.

Machines differ and are noisy: ours and the peer's runs alternate, round after round, and medians are compared. The
peer's environment and its program are described in `bench/peer_openvino.py`.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent


def ours(runs: int, scratch: Path) -> dict[str, Any]:
    """One process of `bench.throughput`; the JSON that it writes."""
    file = scratch / "throughput.json"
    command = [sys.executable, "-m", "bench.throughput", "--runs", str(runs), "--json", str(file)]
    subprocess.run(command, check=True, cwd=FOLDER.parent, capture_output=True)
    return json.loads(file.read_text())


def peer(python: Path, runs: int, scratch: Path, precision: str) -> list[dict[str, Any]]:
    program = str(FOLDER / "peer_openvino.py")
    options = ["--runs", str(runs), "--weights", str(scratch), "--precision", precision]
    done = subprocess.run([str(python), program, *options], check=True, capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", type=Path, required=True, help="a Python that has openvino-genai")
    parser.add_argument("--rounds", type=int, default=3, help="times that the two alternate (default 3)")
    parser.add_argument("--runs", type=int, default=3, help="counted runs a round and engine (default 3)")
    parser.add_argument("--precision", default="f32", choices=["f32", "bf16"], help="of the peer")
    parser.add_argument("--scratch", type=Path, default=Path("out/peers"), help="where the peer's model is kept")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    scratch = arguments.scratch.absolute()
    scratch.mkdir(parents=True, exist_ok=True)
    rounds = []
    for _ in range(arguments.rounds):
        mine = ours(arguments.runs, scratch)
        theirs = peer(arguments.peer_python.absolute(), arguments.runs, scratch, arguments.precision)
        rounds.append({"ours": mine, "peer": theirs})
        print(_line(mine, theirs), flush=True)
    rates = [[run["tokens_per_s"] for r in rounds for run in r["ours"]["runs"]],
             [run["tokens_per_s"] for r in rounds for run in r["peer"]]]  # fmt: skip
    mine, theirs = map(statistics.median, rates)
    machine = rounds[0]["ours"]["machine"]
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}")
    print(
        f"jaxserve {mine:.0f}, {rounds[0]['peer'][0]['peer']} {theirs:.0f} output tokens/s: ratio {mine / theirs:.2f}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"rounds": rounds, "medians": [mine, theirs]}, indent=1) + "\n")


def _line(mine: dict[str, Any], theirs: list[dict[str, Any]]) -> str:
    rate = statistics.median(run["tokens_per_s"] for run in theirs)
    return (
        f"jaxserve {mine['median']['tokens_per_s']:.0f}, peer {rate:.0f} output tokens/s; "
        f"float32 matmul {mine['matmul_gflops_64_rows']:.0f} GFLOP/s at 64 rows, "
        f"{mine['matmul_gflops_512_rows']:.0f} at 512"
    )


if __name__ == "__main__":
    main()
