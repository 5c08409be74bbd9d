"""A server's lives under abuse, all but the last ended by kill -9; the last must in the end hold nothing.

In each life workers make good and bad calls one after another while batch jobs run, and the disk is full for a while.
"""

import asyncio
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.soak.calls import Calls
from bench.soak.disk import Disk
from bench.soak.jobs import Jobs
from bench.soak.outcome import Check, Tally
from bench.soak.process import Held, Process, total

KILLED_SHARE = 0.4
"""Of the time, for the lives that are killed."""
CALMS = 4
FULL_FROM, FULL_SHARE = 0.4, 0.3
"""Of the time between two calms: when the disk fills, and for how long it stays so."""
LONGEST_FULL_S = 20.0
"""How long the disk stays full at most while no sequence is preempted."""
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
    """`log`: where the servers' log goes; `disk`: where batches and KV blocks are."""

    def __init__(self, plan: Plan, log: Path, disk: Disk) -> None:
        self._plan, self._log, self._disk = plan, log, disk
        self._rng = random.Random(plan.seed)
        self.tally = Tally()
        self.checks: list[Check] = []
        self._jobs = Jobs(random.Random(plan.seed + 1), self.tally, disk)

    async def run(self) -> None:
        share = KILLED_SHARE * self._plan.seconds / self._plan.kills if self._plan.kills else 0.0
        for _ in range(self._plan.kills):
            await self._life_that_is_killed(self._rng.uniform(0.5, 1.0) * share)
        await self._last_life((1.0 - (KILLED_SHARE if self._plan.kills else 0.0)) * self._plan.seconds)
        log = self._log.read_text(errors="replace")
        failures = log.count('"level": "error"') + log.count("Traceback")
        self.checks += [
            Check("calls answered as announced", f"{self.tally.total} calls, {len(self.tally.wrong)} otherwise",
                  not self.tally.wrong and self.tally.total > 0),
            Check("errors in the server's log", str(failures), not failures),
        ]  # fmt: skip

    async def _start(self) -> Process:
        process = Process(self._log, self._disk.folder, self._plan.options)
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
            await asyncio.sleep(FULL_FROM * seconds)
            full = asyncio.create_task(self._fill(calls, process, seconds))  # it dies with a full disk
            await asyncio.sleep((1.0 - FULL_FROM) * seconds)
            calls.dying = True
            process.kill()
            ends.set()
            full.cancel()
            await asyncio.gather(work, full, return_exceptions=True)
            work.result()
        finally:
            process.kill()

    async def _last_life(self, seconds: float) -> None:
        process = await self._start()
        try:
            before, calms = process.held(), []
            for _ in range(CALMS):
                ends = asyncio.Event()
                calls = Calls(process.port, self._rng, self.tally)
                work = self._work(calls, process.port, ends)
                share = seconds / CALMS
                await asyncio.sleep(FULL_FROM * share)
                await self._fill(calls, process, FULL_SHARE * share)
                await asyncio.sleep((1.0 - FULL_FROM - FULL_SHARE) * share)
                ends.set()
                await work
                ended = await self._jobs.wait_until_ended(process.port, 60)
                calms.append((await process.wait_until_idle() or ("" if ended else "batches"), process.held()))
            self._judge_calms(before, calms)
            self._judge_full(await process.metrics())
            self.checks += await self._jobs.check(process.port)
            status = await process.terminate()
            self.checks.append(Check("exit status after SIGTERM", str(status), status == 0))
        finally:
            process.kill()

    async def _fill(self, calls: Calls, process: Process, seconds: float) -> None:
        """Fill the disk for `seconds`; on a slow machine longer, until a preempted sequence has met the full disk."""
        if not self._disk.can_fill:
            return await asyncio.sleep(seconds)
        refused, ends = _refused(await process.metrics()), time.monotonic() + LONGEST_FULL_S
        filling = asyncio.create_task(self._disk.fill(math.inf))
        tasks: list[asyncio.Future[Any]] = [filling]
        try:
            await asyncio.sleep(0.1)  # until it is full
            tasks.append(asyncio.gather(self._jobs.upload_while_full(process.port), calls.crowd()))
            await asyncio.sleep(seconds)
            while _refused(await process.metrics()) == refused and time.monotonic() < ends:
                await asyncio.sleep(0.1)
            filling.cancel()
            await tasks[1]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

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

    def _judge_full(self, metrics: str) -> None:
        """`metrics`: of the last life, which has been preempting to the disk and failing to."""
        if not self._disk.can_fill:
            why = "no small filesystem can be mounted here (unshare --mount)"
            self.checks.append(Check("full disk", why, None))
            return
        refused = sum(counts["507"] for counts in self.tally.counts.values())
        parked = total(metrics, "preemptions_total", 'kind="disk"')
        failed = _refused(metrics)
        self.checks += [
            Check("full disk", f"{self._disk.times} times, {self._disk.seconds:.0f} s; {refused} calls answered 507",
                  refused > 0),
            Check("sequences parked on the disk, blocks it refused", f"{parked:.0f}, {failed:.0f}",
                  parked > 0 and failed > 0),
        ]  # fmt: skip


def _refused(metrics: str) -> float:
    """Blocks of preempted sequences that the disk did not take."""
    return total(metrics, "tier_failures_total", 'operation="save"')
