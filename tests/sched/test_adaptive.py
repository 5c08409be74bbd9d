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


def promised(name: str, tokens: int, priority: int = 0) -> Sequence:
    found = prompt(name, tokens)
    found.ttft_slo_s = found.promised_ttft_s = 1.0
    found.priority = priority
    return found


def crowd(rows: int, *waiting: Sequence, kv_usage: float = 0.1, **fields) -> Load:
    """One row that keeps 20 ms a token, and others without an objective."""
    others = [decoding(f"b{i}") for i in range(rows)]
    for s in others:
        s.tpot_slo_s, s.priority = fields.get("tpot_slo_s"), fields.get("priority", 1)
    known = [s for s in waiting if s.promised_ttft_s is not None]
    return Load(0.0, (decoding("a"), *others), waiting, 0.0, True, kv_usage, known)


SLOW_ROWS = replace(COST, row_s=0.001)
"""A step takes 18.6 ms at most. Eleven rows leave room for 32 tokens, the one with an objective for 128."""


def test_rows_without_an_objective_take_none_of_a_promised_prompts_room() -> None:
    assert ask(crowd(10, prompt("c", 400)), SLOW_ROWS).tokens == 11 + 32, "it was promised nothing"
    assert ask(crowd(10, promised("c", 400)), SLOW_ROWS).tokens == 11 + 128
    assert ask(crowd(10, promised("c", 50)), SLOW_ROWS).tokens == 11 + 64, "the bucket that it needs"


def test_a_promised_prompt_that_no_bucket_fits_beside_gets_what_it_needs() -> None:
    assert ask(crowd(15, prompt("c", 400)), SLOW_ROWS).tokens == 16
    assert ask(crowd(15, promised("c", 250)), SLOW_ROWS).tokens == 16 + 256


def test_a_promised_prompt_that_would_be_late_gets_all_that_it_needs() -> None:
    """At 128 tokens a step it takes four steps of 27.9 ms, half of 223 ms."""
    waiting = promised("c", 400)
    waiting.queued_s = -0.77
    assert ask(crowd(10, waiting), SLOW_ROWS).tokens == 11 + 128
    waiting.queued_s = -0.78
    assert ask(crowd(10, waiting), SLOW_ROWS).tokens == 512


def test_an_objective_that_not_even_the_smallest_bucket_keeps_starves_nothing() -> None:
    slow = replace(COST, overhead_s=0.016)
    assert ask(crowd(0, prompt("c", 400)), slow).tokens == 512, "17.1 ms of 18.6 with a row alone, 20.3 with a bucket"


def test_objectives_of_a_lower_class_do_not_starve_a_promised_prompt() -> None:
    lower = crowd(10, promised("c", 60), tpot_slo_s=0.02, priority=1)
    assert ask(lower, SLOW_ROWS).tokens == 11 + 64
    alike = crowd(10, promised("c", 60), tpot_slo_s=0.02, priority=0)
    assert ask(alike, SLOW_ROWS).tokens == 11 + 32, "rows of its own class keep theirs"


def test_a_pool_that_is_full_of_other_work_admits_promised_prompts() -> None:
    assert ask(crowd(3, prompt("c", 60), kv_usage=0.96)).admit == 0
    assert ask(crowd(3, promised("c", 60), prompt("d", 60), kv_usage=0.96)).admit == 1
    own = crowd(0, promised("c", 60), kv_usage=0.96)
    own.running[0].promised_ttft_s = 1.0
    assert ask(own).admit == 0, "there is nothing that could make room"


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
