"""From typing the command to the first token: `python -m bench.start`.

Starts `jaxserve generate` on the embedded model as a process of its own and waits for the first character: once with an
empty compilation cache, then a few times with what that run left there. Imports, loading and warm-up are all in it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

from bench.shared.flags import file_to_write
from bench.shared.machine import describe
from jaxserve.commands.results import write_text


def first_character_s(cache: str, settings: list[str]) -> float:
    """Seconds until the process has written something; it then runs to its end."""
    options = ["--prompt", "KING", "--max-tokens", "8", "--temperature", "0", "--compilation-cache-dir", cache]
    command = [sys.executable, "-m", "jaxserve", "generate", *options, *settings]
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        if not process.stdout.read(1):
            raise SystemExit(f"{' '.join(command)} wrote nothing: run it by hand to see why")
        seconds = time.perf_counter() - begin
        process.stdout.read()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="warm starts (default 3)")
    parser.add_argument("--json", type=file_to_write, help="write the figures here as well")
    arguments, settings = parser.parse_known_args()
    figures = {"machine": describe(), "settings": settings}
    with tempfile.TemporaryDirectory() as cache:
        figures["cold_s"] = first_character_s(cache, settings)
        figures["warm_s"] = [first_character_s(cache, settings) for _ in range(arguments.runs)]
    warm = statistics.median(figures["warm_s"])
    print(
        f"start to first token: {figures['cold_s']:.1f} s with an empty compilation cache, {warm:.1f} s with a warm one"
    )
    if arguments.json:
        write_text(arguments.json, json.dumps(figures, indent=1) + "\n")
