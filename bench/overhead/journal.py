"""What the journal costs: the scheduler's time with it and without, as a share of a step. `python -m bench.journal`

The scheduler alone, on a written clock: 64 slots, a queue that is always long, two classes, blocks so few that some are
preempted, so that there is something to write down. The same requests run with the journal and without it, in turn;
without it the decisions are the same, and are not recorded. A step is then measured on the real engine with the
embedded model, whose steps are the shortest of all, so that the share is the largest.
"""

import argparse
import platform
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from unittest import mock

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.buckets import BucketTable
from jaxserve.core.plan import StepResult
from jaxserve.core.sampling import SamplingParams
from jaxserve.core.sections import BucketConfig, CacheConfig, SchedulerConfig
from jaxserve.core.sequence import Request, Sequence
from jaxserve.sched.journal import Journal
from jaxserve.sched.scheduler import Scheduler

STEP_S = 0.005
HEARD = ("queued", "preempted", "waited", "filled", "first_token", "ended", "packed", "planned", "committed")
"""What the scheduler tells its journal."""


class Load:
    """A scheduler whose queue is kept at `waiting` sequences."""

    def __init__(self, seed: int, waiting: int) -> None:
        limits = SchedulerConfig(max_num_seqs=64, max_num_batched_tokens=512, ordering="priority")
        buckets = BucketTable.from_config(BucketConfig(prefill_rows=16), limits)
        cache = CacheConfig(block_size=16, enable_prefix_caching=False)
        self.scheduler = Scheduler(limits, buckets, BlockManager(cache, 700))
        self._rng, self._waiting, self._count, self._now = random.Random(seed), waiting, 0, 1.0

    def steps(self, count: int) -> float:
        """Seconds that the scheduler took for `count` steps."""
        spent = 0.0
        for _ in range(count):
            arrivals = [self._sequence() for _ in range(self._waiting - self.scheduler.num_waiting)]
            begin = time.perf_counter()
            for sequence in arrivals:
                self.scheduler.add([sequence], self._now)
            plan = self.scheduler.plan(self._now)
            assert plan is not None
            self._now += STEP_S
            self.scheduler.commit(StepResult.of_one_token(plan, 7), self._now)
            spent += time.perf_counter() - begin
        return spent

    def _sequence(self) -> Sequence:
        rng, self._count = self._rng, self._count + 1
        params = SamplingParams(max_tokens=rng.randint(20, 120), temperature=0.0)
        request = Request(
            id=str(self._count), prompt=(1,) * rng.randint(20, 200), params=params, arrival_s=self._now,
            priority=int(rng.random() < 0.8),
        )  # fmt: skip
        return Sequence(request, 0, len(request.prompt) + (params.max_tokens or 1), self._count)


@contextmanager
def without_journal() -> Iterator[None]:
    """The journal is not called, and what is only made for it is not made."""
    journal = mock.patch.multiple(Journal, **dict.fromkeys(HEARD, _nothing))
    with journal, mock.patch.multiple("jaxserve.sched.scheduler", explain=_nothing, record=_nothing):
        yield


def _nothing(*given: object) -> None:
    return None


def scheduler_us(with_journal: bool, seed: int, steps: int, waiting: int) -> tuple[float, int]:
    """Microseconds a step, and the number of preemptions. The first steps, which fill the slots, do not count."""
    load = Load(seed, waiting)
    if with_journal:
        load.steps(200)
        return 1e6 * load.steps(steps) / steps, sum(s.preemptions for s in load.scheduler.live())
    with without_journal():
        load.steps(200)
        return 1e6 * load.steps(steps) / steps, sum(s.preemptions for s in load.scheduler.live())


def step_us() -> float:
    """A step of the embedded model with 64 rows, the median."""
    from jaxserve import LLM

    llm = LLM("embedded", max_num_seqs=64, progress=False)
    params = SamplingParams(max_tokens=96, temperature=0.0, ignore_eos=True)
    llm.generate([[1 + (i * 31 + j) % 500 for j in range(32)] for i in range(192)], params, use_tqdm=False)
    decisions = llm.engine.scheduler.journal.decisions()
    ends = [d.ended_s for d in decisions if d.ended_s is not None and d.decode_rows > 32]
    return 1e6 * statistics.median(b - a for a, b in pairwise(ends))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="rounds with and without, in turn (default 7)")
    parser.add_argument("--steps", type=int, default=1000, help="steps a round (default 1000)")
    parser.add_argument("--waiting", type=int, default=1000, help="length of the queue (default 1000)")
    parser.add_argument("--no-engine", action="store_true", help="leave the real engine out")
    given = parser.parse_args()
    print(f"Python {platform.python_version()}, 64 slots, {given.waiting} waiting, {given.steps} steps a round")
    times: dict[bool, list[float]] = {True: [], False: []}
    gave_way = 0
    for seed in range(given.rounds):
        for with_journal in (True, False):
            taken, gave_way = scheduler_us(with_journal, seed, given.steps, given.waiting)
            times[with_journal].append(taken)
    noted, silent = statistics.median(times[True]), statistics.median(times[False])
    costs = statistics.median([a - b for a, b in zip(times[True], times[False], strict=True)])
    print(f"scheduler, a step: {noted:.0f} us with the journal, {silent:.0f} us without: the journal {costs:.0f} us")
    print(f"preemptions of those that live at the end: {gave_way}")
    if not given.no_engine:
        step = step_us()
        print(f"embedded model, a step of 64 rows: {step / 1e3:.2f} ms; the journal is {costs / step:.2%} of it")
