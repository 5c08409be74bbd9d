"""Soak a server: `python -m bench.soak --minutes 5`.

A `jaxserve serve` of the embedded model on loopback, with small bounds, lives several lives. In each, workers make
good and bad calls one after another while batch jobs run, and the disk of the batches and of the KV tier is full for a
while. All lives but the last end by kill -9 under load, with a full disk; the last is calmed several times, and must
then hold nothing: no sequence, block, file or socket, and no more memory than before.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.shared.flags import folder_to_write
from bench.shared.machine import describe
from bench.soak import outcome
from bench.soak.disk import Disk, run_inside
from bench.soak.lives import Plan, Soak


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m bench.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="time under load, starts not counted (default 5)")
    parser.add_argument("--quick", action="store_true", help="a quarter of a minute, one kill")
    parser.add_argument("--seed", type=int, help="of what is sent (drawn if not given)")
    parser.add_argument("--workers", type=int, default=16, help="callers at once (default 16)")
    parser.add_argument(
        "--kills", type=int, help="times that the server is killed (default: once a minute, 3 at least)"
    )
    parser.add_argument(
        "--serve", action="append", default=[], metavar="--OPTION=VALUE", help="more for jaxserve serve"
    )
    parser.add_argument("--keep", type=folder_to_write, metavar="DIR", help="keep the server's log here")
    arguments = parser.parse_args(given)
    if arguments.minutes <= 0 or arguments.workers < 1 or (arguments.kills or 0) < 0:
        parser.error("--minutes must be above 0, --workers 1 or more, --kills 0 or more")
    inside = run_inside("bench.soak", sys.argv[1:] if given is None else given)
    if inside is not None:
        return inside
    seed = arguments.seed if arguments.seed is not None else random.randrange(10**6)
    seconds, kills = (15.0, 1) if arguments.quick else (60 * arguments.minutes, max(3, int(arguments.minutes)))
    kills = kills if arguments.kills is None else arguments.kills
    plan = Plan(seconds, seed, kills, arguments.workers, arguments.serve)
    machine = describe(device=False)
    print(f"seed {seed}; {seconds:g} s under load, {kills} x kill -9, {arguments.workers} callers; "
          f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}", flush=True)  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="jaxserve-soak-") as scratch:
        folder = arguments.keep or Path(scratch)
        began = time.monotonic()
        disk = Disk(Path(scratch) / "disk")
        try:
            soak = Soak(plan, folder / "server.log", disk)
            asyncio.run(soak.run())
        finally:
            disk.close()
        print(f"\n{soak.tally.show()}\n\n{outcome.show(soak.checks)}\n\n{time.monotonic() - began:.0f} s in all")
    for wrong in soak.tally.wrong[:20]:
        print(wrong, file=sys.stderr)
    return 0 if all(check.good is not False for check in soak.checks) else 1


if __name__ == "__main__":
    sys.exit(main())
