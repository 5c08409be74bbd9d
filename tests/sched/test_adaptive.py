"""Each thing that the adaptive policy looks at changes what it answers: all else being equal."""

from dataclasses import replace

import pytest

from jaxserve.core.buckets import BucketTable
from jaxserve.core.clock import VirtualClock
from jaxserve.core.config import EngineConfig
from jaxserve.core.sampling import SamplingParams
from jaxserve.core.sections import BucketConfig, SchedulerConfig
from jaxserve.core.sequence import Request, Sequence, Status
from jaxserve.costs.model import CostModel, FormulaCost, StepFeatures
from jaxserve.costs.step_costs import StepCosts
from jaxserve.sched.chunking import PROMPTS_SEEN, most_of_one
from jaxserve.sched.policies.adaptive import Adaptive, _pending
from jaxserve.sched.policies.policy import Load, Mode, PolicyContext, StepLimits
from jaxserve.sim.arrivals import Arrival
from jaxserve.sim.build import simulated_engine
from jaxserve.sim.drive import drive

COST = FormulaCost(
    source="made up", overhead_s=0.002, weights_s=0.0, token_s=1e-4, pair_s=0.0, context_s=0.0, row_s=0.0
)
CONFIG = SchedulerConfig(policy="adaptive", max_num_seqs=16, max_num_batched_tokens=512)
TABLE = BucketTable.from_config(BucketConfig(prefill_buckets=(32, 64, 128, 256, 512)), CONFIG)


def decoding(name: str, tpot_slo_s: float = 0.02, outputs: int = 1) -> Sequence:
    """Its first token came at 0."""
    found = prompt(name, 20)
    found.tokens += [1] * outputs
    found.num_computed, found.decoding, found.status = 20 + outputs - 1, True, Status.RUNNING
    found.tpot_slo_s, found.first_token_s = tpot_slo_s, 0.0
    return found


def prompt(name: str, tokens: int) -> Sequence:
    request = Request(id=name, prompt=(1,) * tokens, params=SamplingParams(max_tokens=100))
    return Sequence(request, 0, tokens + 100, 0)


def ask(load: Load, cost: CostModel = COST) -> StepLimits:
    return Adaptive(PolicyContext(CONFIG, TABLE, StepCosts(cost))).limits(load)


def load(*running: Sequence, waiting: tuple[Sequence, ...] = (), now: float = 0.0, kv_usage: float = 0.1) -> Load:
    return Load(now, running, waiting, now, True, kv_usage)


BUSY = load(decoding("a"), waiting=(prompt("b", 400),))


def test_the_predicted_step_time() -> None:
    assert ask(BUSY).tokens == 1 + 128, "12.9 ms of 18.6 ms; 256 would take 25.7"
    assert ask(BUSY, replace(COST, token_s=3e-4)).tokens == 1 + 32
    assert ask(BUSY, replace(COST, token_s=2e-5)).tokens == 512


def test_the_tightest_slack() -> None:
    assert ask(load(decoding("a", tpot_slo_s=0.04), waiting=BUSY.waiting)).tokens == 1 + 256
    tight = load(decoding("a", tpot_slo_s=0.04), decoding("c", tpot_slo_s=0.01), waiting=BUSY.waiting)
    assert ask(tight).tokens == 2 + 64, "the tightest of two"
    late = load(decoding("a"), waiting=BUSY.waiting, now=0.010)
    assert ask(late).tokens == 1 + 64, "its next token is due in 8.6 ms, and the step may take half of 18.6"


def test_the_mix_of_long_and_short_prompts() -> None:
    assert ask(BUSY).chunk == 128, "the long one is alone: it has all of the step"
    short = replace(BUSY, waiting=(*BUSY.waiting, prompt("c", 30)))
    assert ask(short).chunk == 128 - 30 and ask(short).tokens == ask(BUSY).tokens
    many = replace(BUSY, waiting=(*BUSY.waiting, *(prompt(f"c{i}", 30) for i in range(6))))
    assert ask(many).chunk == 64, "and never less than half"
    only_short = replace(BUSY, waiting=tuple(prompt(f"c{i}", 30) for i in range(6)))
    assert ask(only_short).chunk == 128


def test_who_cannot_join_is_no_part_of_the_mix() -> None:
    under_way = prompt("long", 2000)
    waiting = tuple(prompt(f"c{i}", 30) for i in range(6))
    assert ask(load(decoding("a"), under_way, waiting=waiting)).chunk == 64
    full = load(*(decoding(f"a{i}") for i in range(15)), under_way, waiting=waiting)
    assert ask(full).chunk == ask(full).tokens - 15, "there is no slot"
    pressed = load(decoding("a"), under_way, waiting=waiting, kv_usage=0.96)
    assert ask(pressed).chunk == 128, "there are no blocks"


def test_a_long_queue_is_not_looked_through() -> None:
    queue = (prompt("long", 2000), *(prompt(f"c{i}", 1) for i in range(1000)))
    assert most_of_one(_pending(load(waiting=queue), 1000), 512) == 512 - (PROMPTS_SEEN - 1)


def test_the_pressure_on_the_pool() -> None:
    assert ask(BUSY).admit == 16
    assert ask(replace(BUSY, kv_usage=0.96)).admit == 0
    assert ask(load(waiting=BUSY.waiting, kv_usage=0.96)).admit == 16, "nobody decodes, so nobody would end"


class Dear:
    """A device whose mixed programs cost more than the two others together."""

    source = "made up"

    def __init__(self, mixed: float) -> None:
        self._mixed = mixed

    def seconds(self, features: StepFeatures) -> float:
        mixed = features.prefill_tokens > 0 and features.decode_rows > 0
        return COST.seconds(features) + (self._mixed if mixed else 0.0)


def test_two_steps_where_they_are_faster_than_one() -> None:
    assert ask(BUSY).mode is Mode.MIXED
    assert ask(BUSY, Dear(0.004)).mode is Mode.ALTERNATE
    assert ask(load(waiting=BUSY.waiting), Dear(0.004)).mode is Mode.MIXED, "nobody decodes: nothing to take turns with"


@pytest.mark.parametrize("policy", ["adaptive", "chunked", "static"])
def test_objectives_where_no_step_mixes(policy: str) -> None:
    """In deterministic mode prompts and decodes take turns: what is forecast and chosen counts both steps."""
    settings = EngineConfig.from_settings(
        num_blocks=400, block_size=16, max_num_seqs=8, max_num_batched_tokens=64, deterministic=True, policy=policy,
        ttft_slo_s=5.0, tpot_slo_s=0.05, admission="slo", batch_size=2,
    )  # fmt: skip
    clock = VirtualClock()
    engine = simulated_engine(settings, COST, clock)
    served = list(drive(engine, clock, [Arrival(0.01 * i, 50 + 9 * i, 12) for i in range(20)]))
    assert all(len(s.token_s) == 12 for s in served if not s.refused)
    assert sum(s.predicted_ttft_s > 0 for s in served) == 20 and sum(not s.refused for s in served) > 10
