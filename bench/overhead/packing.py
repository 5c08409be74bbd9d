"""What packing to the buckets' edges saves: `python -m bench.packing`, and `--real` on the embedded model.

The same seeded arrivals with `fill_buckets` on and off, on the scheduler alone; a step costs `base + per_token x padded
tokens`, by default the CPU figures of the embedded model's size class. Counted: steps, padded over real tokens, and
output tokens over the summed cost.

`--real`: the engine on the embedded model, the same kind of requests from clients that each send their next one when
the last is answered, so that prompts and decodes mix; on and off take turns. Counted: the same, by the clock.
"""

import argparse
import random
import statistics
import time

from bench.shared.step_times import StepTimes
from jaxserve.cache.block_manager import BlockManager
from jaxserve.core.buckets import BucketTable
from jaxserve.core.plan import StepResult
from jaxserve.core.sampling import SamplingParams
from jaxserve.core.sections import BucketConfig, CacheConfig, SchedulerConfig
from jaxserve.core.sequence import Request, Sequence
from jaxserve.llm import LLM
from jaxserve.sched.scheduler import Scheduler


def run(
    fill_buckets: bool, chunk_size: int | None, seed: int, requests: int, base_ms: float, token_ms: float
) -> dict[str, float]:
    """Requests arrive as the clock, driven by the steps' costs, passes their times."""
    limits = SchedulerConfig(
        max_num_seqs=64, max_num_batched_tokens=512, fill_buckets=fill_buckets, chunk_size=chunk_size
    )
    table = BucketTable.from_config(BucketConfig(), limits)
    scheduler = Scheduler(limits, table, BlockManager(CacheConfig(block_size=32), 4000))
    rng = random.Random(seed)
    arrivals, at = [], 0.0
    for i in range(requests):
        at += rng.expovariate(1 / 40.0)
        prompt = tuple(rng.randrange(1000) for _ in range(rng.randint(16, 700)))
        params = SamplingParams(max_tokens=rng.randint(8, 128), temperature=0.0)
        arrivals.append((at, Request(id=str(i), prompt=prompt, params=params)))
    clock_ms = real = padded = steps = outputs = 0.0
    while arrivals or scheduler.has_work:
        while arrivals and arrivals[0][0] <= clock_ms:
            request = arrivals.pop(0)[1]
            scheduler.add([Sequence(request, 0, len(request.prompt) + (request.params.max_tokens or 0), 0)], clock_ms)
        plan = scheduler.plan(clock_ms)
        if plan is None:
            clock_ms = max(clock_ms, arrivals[0][0])
            continue
        clock_ms += base_ms + token_ms * plan.bucket.tokens
        steps, real, padded = steps + 1, real + plan.num_tokens, padded + plan.bucket.tokens
        result = StepResult.of_one_token(plan, 1)
        outputs += len(result.tokens)
        scheduler.commit(result, clock_ms)
    return {"steps": steps, "padding": padded / real, "tokens_per_s": 1e3 * outputs / clock_ms}


def run_real(llm: LLM, seed: int, requests: int, clients: int) -> dict[str, float]:
    rng = random.Random(seed)
    left = []
    for _ in range(requests):
        prompt = [rng.randrange(llm.model_config.vocab_size) for _ in range(rng.randint(16, 700))]
        params = SamplingParams(max_tokens=rng.randint(8, 128), temperature=0.0, ignore_eos=True)
        left.append(llm.make_request(prompt, params))
    times = StepTimes(llm.runner)
    llm.engine.replace_executor(times)
    for _ in range(clients):
        llm.engine.add(left.pop())
    outputs, begin = 0, time.perf_counter()
    while llm.engine.has_work:
        for output in llm.engine.step():
            outputs += len(output.tokens)
            if output.finish_reason is not None and left:
                llm.engine.add(left.pop())
    wall = time.perf_counter() - begin
    llm.engine.replace_executor(llm.runner)
    return {"steps": times.steps, "padding": times.padded_tokens / times.real_tokens, "tokens_per_s": outputs / wall}


def real(rounds: int, requests: int, clients: int) -> None:
    sizes = {"max_num_seqs": clients, "max_num_batched_tokens": 512}
    llms = {fill: LLM("embedded", fill_buckets=fill, progress=False, **sizes) for fill in (False, True)}
    runs: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for i in range(rounds):
        for fill in (False, True) if i % 2 else (True, False):
            runs[fill].append(run_real(llms[fill], i, requests, clients))
    print(f"embedded model, {requests} requests from {clients} clients, median of {rounds} rounds (and their range)")
    print(f"{'fill':>5} {'steps':>7} {'padded/real':>12} {'tokens/s':>9}")
    for fill, found in runs.items():
        steps, padding, rates = ([run[name] for run in found] for name in found[0])
        print(
            f"{'on' if fill else 'off':>5} {statistics.median(steps):7.0f} {statistics.median(padding):12.3f} "
            f"{statistics.median(rates):9.0f}   ({min(rates):.0f}-{max(rates):.0f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--base-ms", type=float, default=1.3, help="cost of any step (default 1.3)")
    parser.add_argument("--token-ms", type=float, default=0.09, help="cost of a padded token (default 0.09)")
    parser.add_argument("--real", action="store_true", help="the engine on the embedded model; --requests a round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of --real (default 5)")
    parser.add_argument("--clients", type=int, default=16, help="clients of --real (default 16)")
    arguments = parser.parse_args()
    if arguments.real:
        real(arguments.rounds, arguments.requests, arguments.clients)
        return
    print(f"{'chunk_size':>10} {'fill':>5} {'steps':>7} {'padded/real':>12} {'tokens/s':>9}   (mean of 3 seeds)")
    for chunk_size in (None, 256, 100):
        for fill in (False, True):
            runs = [
                run(fill, chunk_size, seed, arguments.requests, arguments.base_ms, arguments.token_ms)
                for seed in (1, 2, 3)
            ]
            mean = {name: sum(r[name] for r in runs) / len(runs) for name in runs[0]}
            print(
                f"{chunk_size or 'budget':>10} {'on' if fill else 'off':>5} {mean['steps']:7.0f} "
                f"{mean['padding']:12.3f} {mean['tokens_per_s']:9.0f}"
            )
