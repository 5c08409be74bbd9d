"""Row decisions a second of the scheduler and block manager alone: `python -m bench.scheduler`.

256 sequences decode, with prompts of 100-1000 tokens behind them; a row decision is one row planned and committed.
"""

import argparse
import platform
import random
import statistics
import time

from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.buckets import BucketTable
from jaxserve.core.plan import StepPlan, StepResult
from jaxserve.core.sampling import SamplingParams
from jaxserve.core.sections import BucketConfig, CacheConfig, SchedulerConfig
from jaxserve.core.sequence import Request, Sequence
from jaxserve.sched.scheduler import Scheduler

ROWS = 256


def decoding_scheduler(seed: int, outputs: int = 100_000) -> Scheduler:
    """A scheduler whose 256 sequences have all finished their prompts."""
    limits = SchedulerConfig(max_num_seqs=ROWS, max_num_batched_tokens=8192)
    buckets = BucketTable.from_config(BucketConfig(prefill_rows=64), limits)
    blocks = BlockManager(CacheConfig(block_size=32), 200_000)
    scheduler = Scheduler(limits, buckets, blocks)
    rng = random.Random(seed)
    params = SamplingParams(max_tokens=outputs, temperature=0.0)
    for i in range(ROWS):
        prompt = tuple(rng.randrange(32_000) for _ in range(rng.randint(100, 1000)))
        request = Request(id=str(i), prompt=prompt, params=params, eos_token_ids=(2,))
        scheduler.add([Sequence(request, 0, len(prompt) + outputs, i)], 0.0)
    while True:
        plan = scheduler.plan(0.0)
        assert plan is not None
        commit(scheduler, plan)
        if len(plan.decodes) == ROWS:
            return scheduler


def commit(scheduler: Scheduler, plan: StepPlan) -> None:
    scheduler.commit(StepResult.of_one_token(plan, 7), 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="steps a round (default 300)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds (default 9)")
    arguments = parser.parse_args()
    scheduler = decoding_scheduler(0)
    rates = []
    for _ in range(arguments.rounds):
        begin = time.perf_counter()
        for _ in range(arguments.steps):
            plan = scheduler.plan(0.0)
            assert plan is not None
            commit(scheduler, plan)
        rates.append(ROWS * arguments.steps / (time.perf_counter() - begin))
    print(f"Python {platform.python_version()}, {ROWS} decode rows, {arguments.steps} steps a round")
    print(f"row decisions a second: median {statistics.median(rates):,.0f}, best {max(rates):,.0f}")
    print(f"plan and commit of one step: median {1e3 * ROWS / statistics.median(rates):.2f} ms")
