"""Soak a server: `python -m bench.soak --minutes 5`.

A `jaxserve serve` of the embedded model on loopback, with small bounds, lives several lives. In each, workers make
good and bad calls one after another while batch jobs run. All lives but the last end by kill -9 under load; the last is
calmed several times, and must then hold nothing: no sequence, block, file or socket, and no more memory than before.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.machine import describe
from bench.soak import outcome
from bench.soak.calls import Calls
from bench.soak.jobs import Jobs
from bench.soak.outcome import Check, Tally
from bench.soak.process import Held, Process

KILLED_SHARE = 0.4
"""Of the time, for the lives that are killed."""
CALMS = 4
RSS_SLACK_MB = 24.0
"""What memory may have grown by between the first calm, when all caches are warm, and the last."""
FILES_SLACK = 2
"""Files that an idle server may hold more than before: connections of the batches' store, opened when first needed."""


@dataclass(frozen=True)
class Plan:
    seconds: float
    seed: int
    kills: int
    workers: int
    options: Sequence[str]


class Soak:
    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan, self._folder = plan, folder
        self._rng = random.Random(plan.seed)
        self.tally = Tally()
        self.checks: list[Check] = []
        self._jobs = Jobs(random.Random(plan.seed + 1), self.tally)

    async def run(self) -> None:
        share = KILLED_SHARE * self._plan.seconds / self._plan.kills if self._plan.kills else 0.0
        for _ in range(self._plan.kills):
            await self._life_that_is_killed(self._rng.uniform(0.5, 1.0) * share)
        await self._last_life((1.0 - (KILLED_SHARE if self._plan.kills else 0.0)) * self._plan.seconds)
        log = (self._folder / "server.log").read_text(errors="replace")
        failures = log.count('"level": "error"') + log.count("Traceback")
        self.checks += [
            Check("calls answered as announced", f"{self.tally.total} calls, {len(self.tally.wrong)} otherwise",
                  not self.tally.wrong and self.tally.total > 0),
            Check("errors in the server's log", str(failures), not failures),
        ]  # fmt: skip

    async def _start(self) -> Process:
        process = Process(self._folder, self._plan.options)
        try:
            await process.wait_until_ready()
        except BaseException:
            process.kill()
            raise
        return process

    async def _life_that_is_killed(self, seconds: float) -> None:
        process = await self._start()
        try:
            ends = asyncio.Event()
            calls = Calls(process.port, self._rng, self.tally)
            work = self._work(calls, process.port, ends)
            await asyncio.sleep(seconds)
            calls.dying = True
            process.kill()
            ends.set()
            await work
        finally:
            process.kill()

    async def _last_life(self, seconds: float) -> None:
        process = await self._start()
        try:
            before, calms = process.held(), []
            for _ in range(CALMS):
                ends = asyncio.Event()
                work = self._work(Calls(process.port, self._rng, self.tally), process.port, ends)
                await asyncio.sleep(seconds / CALMS)
                ends.set()
                await work
                ended = await self._jobs.wait_until_ended(process.port, 60)
                calms.append((await process.wait_until_idle() or ("" if ended else "batches"), process.held()))
            self._judge_calms(before, calms)
            self.checks += await self._jobs.check(process.port)
            status = await process.terminate()
            self.checks.append(Check("exit status after SIGTERM", str(status), status == 0))
        finally:
            process.kill()

    def _work(self, calls: Calls, port: int, ends: asyncio.Event) -> "asyncio.Future[object]":
        workers = [calls.run(ends) for _ in range(self._plan.workers)]
        return asyncio.gather(*workers, self._jobs.run(port, ends))

    def _judge_calms(self, before: Held, calms: list[tuple[str, Held]]) -> None:
        left = [held for held, _ in calms if held]
        last, memory = calms[-1][1], [held.rss_mb for _, held in calms]
        files = ", ".join(str(held.files) for held in (before, *(held for _, held in calms)))
        sockets = ", ".join(str(held.sockets) for held in (before, *(held for _, held in calms)))
        self.checks += [
            Check("sequences, blocks, calls left when calm", "; ".join(left) or f"none, {len(calms)} times", not left),
            Check("open files: at first, at each calm", files, last.files <= before.files + FILES_SLACK),
            Check("open sockets: at first, at each calm", sockets, last.sockets <= before.sockets),
            Check("resident MB: at first, at each calm",
                  ", ".join(f"{mb:.0f}" for mb in (before.rss_mb, *memory)), memory[-1] <= memory[0] + RSS_SLACK_MB),
        ]  # fmt: skip


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
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the server's log and batches here")
    arguments = parser.parse_args(given)
    if arguments.minutes <= 0 or arguments.workers < 1 or (arguments.kills or 0) < 0:
        parser.error("--minutes must be above 0, --workers 1 or more, --kills 0 or more")
    seed = arguments.seed if arguments.seed is not None else random.randrange(10**6)
    seconds, kills = (15.0, 1) if arguments.quick else (60 * arguments.minutes, max(3, int(arguments.minutes)))
    kills = kills if arguments.kills is None else arguments.kills
    plan = Plan(seconds, seed, kills, arguments.workers, arguments.serve)
    machine = describe(device=False)
    print(f"seed {seed}; {seconds:g} s under load, {kills} x kill -9, {arguments.workers} callers; "
          f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}", flush=True)  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="jaxserve-soak-") as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        soak = Soak(plan, folder)
        asyncio.run(soak.run())
        print(f"\n{soak.tally.show()}\n\n{outcome.show(soak.checks)}\n\n{time.monotonic() - began:.0f} s in all")
    for wrong in soak.tally.wrong[:20]:
        print(wrong, file=sys.stderr)
    return 0 if all(check.good for check in soak.checks) else 1


if __name__ == "__main__":
    sys.exit(main())
