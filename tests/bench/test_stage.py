"""The engines of benchmarks, real and simulated: whom they serve, until when, and what they leave behind."""

from bench.shared.rates import duration_s, throughput
from bench.stage import BEGINNINGS, RealEngine, SimulatedEngine, random_prompts
from jaxserve.core.config import EngineConfig
from jaxserve.core.step_record import StepRecord
from jaxserve.costs.model import FormulaCost
from jaxserve.sim.arrivals import Arrival
from jaxserve.sim.drive import Served

COST = FormulaCost(source="x", overhead_s=1.0, weights_s=0.0, token_s=0.0, pair_s=0.0, context_s=0.0, row_s=0.0)
CONFIG = EngineConfig.from_settings(max_num_seqs=4, max_num_batched_tokens=64, num_blocks=50, overlap=False)
ARRIVALS = [Arrival(0.0, 8, 4), Arrival(0.0, 8, 12), Arrival(0.0, 8, 40)]


class Seconds:
    def __init__(self) -> None:
        self.seconds = 0.0

    def observe(self, record: StepRecord) -> None:
        self.seconds += record.seconds


def test_observers_see_the_steps_of_one_run() -> None:
    engine, seen = SimulatedEngine(CONFIG, COST), Seconds()
    served = list(engine.serve(ARRIVALS, seen))
    assert [len(one.token_s) for one in served] == [4, 12, 40]
    assert seen.seconds == duration_s(served) == 40.0
    assert not engine.engine.observers


def test_a_run_stops_when_a_request_ends_after_a_time() -> None:
    served = list(SimulatedEngine(CONFIG, COST).serve(ARRIVALS, until_s=10.0))
    assert [one.arrival.output_tokens for one in served] == [4, 12]


def test_rates_are_of_all_runs_together() -> None:
    one = [Served(0, Arrival(1.0, 8, 2), token_s=[2.0, 3.0])]
    other = [Served(0, Arrival(0.0, 8, 4), token_s=[1.0, 2.0, 3.0, 6.0]), Served(1, Arrival(0.0, 8, 1), refused="slo")]
    assert (duration_s(one), throughput(one)) == (2.0, 1.0)
    assert (duration_s(one, other), throughput(one, other)) == (8.0, 0.75)


def test_prompts_begin_differently() -> None:
    prompts = random_prompts(512, 100)
    made = [prompts(Arrival(0.0, 100, 1), number) for number in (0, 1, 2, BEGINNINGS - 1)]
    assert all(len(prompt) == 100 for prompt in made) and len({prompt[:16] for prompt in made}) == 4
    assert made[0] == random_prompts(512, 100)(Arrival(0.0, 100, 1), 0)


def test_prompts_begin_alike_where_their_prefix_blocks_do() -> None:
    prompts = random_prompts(512, 100)

    def made(number: int, *blocks: int) -> tuple[int, ...]:
        return prompts(Arrival(0.0, 20, 1, prefix_blocks=blocks, block_tokens=8), number)

    one, two, other = made(0, 1, 2), made(1, 1, 2), made(0, 1, 3)
    assert len(one) == len(two) == 20 and one[:16] == two[:16] and one[16:] != two[16:]
    assert one[:8] == other[:8] and one[8:16] != other[8:16] and one[16:] == other[16:]
    assert len(made(0, 1, 2, 3)) == 20, "the last block is cut"
    assert one[:8] != prompts(Arrival(0.0, 20, 1), 1)[:8]


def test_a_stopped_run_leaves_the_real_engine_empty() -> None:
    from jaxserve.llm import LLM

    settings = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "num_blocks": 50, "decode_buckets": (4,),
                "mixed_decode_buckets": (4,), "prefill_buckets": (64,)}  # fmt: skip
    llm = LLM("embedded", progress=False, **settings)
    engine = RealEngine(llm)
    engine.warm_up(ARRIVALS[:1])
    served = list(engine.serve(ARRIVALS, until_s=0.0))
    assert [one.arrival.output_tokens for one in served] == [4]
    assert not llm.engine.has_work and llm.engine.scheduler.blocks.usage == 0.0
    llm.close()
