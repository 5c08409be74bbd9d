"""`jaxserve calibrate`: time the engine's own steps on this machine and learn what they cost."""

import argparse
import random
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxserve.commands.disturbance import QUIET, Disturbance
from jaxserve.commands.results import expect_file, written
from jaxserve.commands.settings_flags import WideFormatter, add_settings, config_from_flags, name_idle
from jaxserve.core.config import EngineConfig
from jaxserve.core.sampling import SamplingParams
from jaxserve.core.settings import require
from jaxserve.core.step_record import StepRecord
from jaxserve.costs.file import save_cost
from jaxserve.costs.fitted import Sample, fit_steps
from jaxserve.costs.model import StepFeatures

if TYPE_CHECKING:
    from jaxserve.llm import LLM

_EXAMPLE = """\
examples:
  jaxserve calibrate cost.json --config configs/cpu.toml
  jaxserve serve --config configs/cpu.toml --cost-model cost.json --policy adaptive --tpot-slo-s 0.05

Rounds of seeded random requests run on the engine, with as many at once as it takes, and fewer. Steps of every other
round are learnt from, those of the rounds between are held out: the error printed is theirs.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "calibrate",
        help="time this machine's steps and write their cost model",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=WideFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("out", type=Path, help="the cost model, as JSON")
    group = parser.add_argument_group("calibration")
    group.add_argument("--rounds", type=int, default=8, help="rounds of requests, every other one held out (8)")
    group.add_argument("--requests", type=int, default=24, help="requests in a round (24)")
    group.add_argument("--calibration-seed", type=int, default=0, help="seed of the lengths (0)")
    add_settings(parser)


def run(given: argparse.Namespace) -> int:
    require(given.rounds >= 2, "rounds", given.rounds, "at least 2: one to learn from and one to hold out")
    require(given.requests >= 1, "requests", given.requests, "at least 1")
    expect_file(given.out)
    config = config_from_flags(given, say_idle=False)
    config = config.replace(enable_prefix_caching=False, policy="chunked", admission="queue")
    name_idle(config)
    from jaxserve.llm import LLM

    disturbance = Disturbance()
    llm = LLM(config=config)
    learnt, held_out = measure(llm, given.rounds, given.requests, given.calibration_seed)
    others = disturbance.share()
    belongs_to = _belongs_to(config)
    model = fit_steps(learnt, "measured: {model} on {device} ({machine}), JAX {jax}".format(**belongs_to))
    errors = sorted(abs(model.seconds(features) / seconds - 1.0) for features, seconds in held_out)
    predicted, measured = sum(model.seconds(features) for features, _ in held_out), sum(s for _, s in held_out)
    print(f"{len(learnt)} steps learnt from, {len(held_out)} held out")
    print(f"error on held-out steps: median {statistics.median(errors):.1%}, P90 {errors[int(0.9 * len(errors))]:.1%}")
    print(
        f"their time, summed: predicted {predicted:.3f} s, measured {measured:.3f} s ({predicted / measured - 1:+.1%})"
    )
    if others is not None and others > QUIET:
        print(
            f"other processes took {others:.0%} of the processors: steps were held up, and not all of them alike; "
            "calibrate again when nothing else runs"
        )
    pool = llm.engine.scheduler.blocks.pool.capacity
    print(f"KV pool: {pool} blocks of {config.cache.block_size} tokens: --num-blocks {pool} to simulate it")
    with written(given.out):
        save_cost(given.out, model, belongs_to | {"num_blocks": pool, "block_size": config.cache.block_size})
    print(f"wrote {given.out}")
    return 0


def measure(llm: "LLM", rounds: int, requests: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """(steps to learn from, steps held out) of this engine on this machine."""
    timer = StepTimer()
    llm.engine.observers.append(timer)
    rng, longest, vocab = random.Random(seed), llm.limits.max_len[0], llm.limits.vocab_size
    kept: tuple[list[Sample], list[Sample]] = ([], [])
    for number in range(rounds + 2):  # the first two warm the machine up
        timer.samples = []
        for i in range(max(1, requests // (1 + number // 2 % 3))):
            outputs = rng.randint(2, max(longest // 4, 2))
            prompt = [rng.randrange(vocab) for _ in range(rng.randint(1, max(longest - outputs - 1, 1)))]
            params = SamplingParams(temperature=0.0, max_tokens=outputs, ignore_eos=True)
            llm.engine.add(llm.make_request(prompt, params))
            for _ in range(rng.choice((0, 0, 1, 8)) if i else 0):
                llm.engine.step()
        while llm.engine.has_work:
            llm.engine.step()
        if number >= 2:
            kept[number % 2].extend(timer.samples)
    return kept


class StepTimer:
    """An observer that keeps what each step held and how long it took."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def observe(self, record: StepRecord) -> None:
        if record.plan is not None and record.plan.num_tokens and record.seconds > 0.0:
            self.samples.append((StepFeatures.of(record.plan), record.seconds))


def _belongs_to(config: EngineConfig) -> dict[str, Any]:
    import platform

    import jax

    return {
        "model": config.model.model,
        "device": jax.devices()[0].device_kind,
        "machine": platform.processor() or platform.machine(),
        "jax": jax.__version__,
        "max_num_seqs": config.scheduler.max_num_seqs,
        "max_num_batched_tokens": config.scheduler.max_num_batched_tokens,
    }
