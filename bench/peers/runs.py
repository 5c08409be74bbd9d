"""What the peers' programs have in common: flags, counted runs, and a line of JSON for each."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.shared.workload import REQUESTS


def parser(doc: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="counted runs after one that is not (default 3)")
    parser.add_argument("--outputs", type=int, default=64, help="output tokens a request (default 64)")
    parser.add_argument("--budget", type=int, default=1024, help="most tokens in a step (default 1024)")
    parser.add_argument("--weights", type=Path, default=Path("out/peers"), help="where the model is kept")
    return parser


def figures(peer: str, tokens: int, outputs: int, wall_s: float) -> dict[str, Any]:
    """Of one run, in which every request is to have had `outputs` tokens."""
    assert tokens == REQUESTS * outputs, tokens
    return {"peer": peer, "tokens_per_s": tokens / wall_s, "wall_s": wall_s}


def print_runs(run: Callable[[int], dict[str, Any]], runs: int) -> None:
    """`run(seed)` once uncounted, then `runs` times."""
    run(0)
    for seed in range(1, runs + 1):
        print(json.dumps(run(seed)), flush=True)
