"""What if: a known effect is put in and found; where there is none, none is."""

from pathlib import Path

import pytest

from jaxserve.core.clock import VirtualClock
from jaxserve.core.config import EngineConfig
from jaxserve.costs.model import FormulaCost
from jaxserve.metrics.slo import Slo
from jaxserve.sim.arrivals import Arrival
from jaxserve.sim.build import simulated
from jaxserve.sim.counterfactual import counterfactual, pool
from jaxserve.sim.drive import drive
from jaxserve.sim.record import Record
from jaxserve.sim.record_reader import read_record
from jaxserve.sim.recorder import Recorder

SECOND_A_STEP = FormulaCost(
    source="made up", overhead_s=1.0, weights_s=0.0, token_s=0.0, pair_s=0.0, context_s=0.0, row_s=0.0
)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """60 requests of 48 prompt tokens and 3 output tokens, far apart: a step takes a second, whatever is in it."""
    config = EngineConfig.from_settings(num_blocks=100, block_size=8, max_num_seqs=4, max_num_batched_tokens=64)
    clock = VirtualClock()
    engine = simulated(config, SECOND_A_STEP, clock).engine
    with (tmp_path / "r").open("w") as file:
        engine.observers.append(recorder := Recorder(file, config, 101, 1000, 0.0))
        list(drive(engine, clock, [Arrival(20.0 * i, 48, 3) for i in range(60)]))
        recorder.close()
    return read_record(tmp_path / "r")


def test_a_known_effect_is_found(record: Record) -> None:
    """Chunks of 16 instead of the whole prompt: three steps instead of one, so every first token is 2 s later."""
    found = counterfactual(
        record, record.config.replace(chunk_size=16, fill_buckets=False), SECOND_A_STEP, Slo(ttft_s=2.0)
    )
    ttft, tpot = found.differences["ttft mean"], found.differences["tpot mean"]
    assert found.pairs == 60
    assert (ttft.before, ttft.after) == pytest.approx((1.0, 3.0)) and ttft.certain
    assert ttft.low <= ttft.value == pytest.approx(2.0) and ttft.high >= 2.0 - 1e-9
    assert tpot.value == pytest.approx(0.0) and not tpot.certain
    assert found.differences["e2e p99"].value == pytest.approx(2.0)
    assert found.differences["queue p99"].value == found.differences["longest gap p99"].value == 0.0
    assert found.differences["goodput of these"].value == -1.0


def test_waits_and_gaps_are_compared(record: Record) -> None:
    """One at a time and 20 s apart nobody waits; ten times as fast three queue for one place, at 4 s a request."""
    for request in record.requests:
        request.arrival_s /= 10.0
    found = counterfactual(record, record.config.replace(max_num_seqs=1, overlap=False), SECOND_A_STEP)
    queue, gap = found.differences["queue mean"], found.differences["longest gap mean"]
    assert queue.certain and queue.value > 10.0 and gap.before >= 1.0 <= gap.after


def test_no_change_is_no_difference(record: Record) -> None:
    found = counterfactual(record, record.config, SECOND_A_STEP)
    assert all(d.value == 0.0 and not d.certain for d in found.differences.values())


def test_other_tenants_are_a_change_too(record: Record, tmp_path: Path) -> None:
    """5 of 100 blocks of 8 tokens hold none of these prompts."""
    path = tmp_path / "tenants.toml"
    path.write_text("[tenants.default]\nkv_max = 0.05\n")
    found = counterfactual(record, record.config.replace(tenants=str(path)), SECOND_A_STEP)
    assert found.before.summary.all.completed == 60 and found.after.summary.all.completed == found.pairs == 0


def test_the_fitted_step_times_reproduce_the_record(record: Record) -> None:
    found = counterfactual(record, record.config)
    assert "fitted" in found.before.cost_source
    for name, (real, made) in found.measured.items():
        assert made == pytest.approx(real, rel=0.05), name


def test_the_pool_is_the_recorded_one_unless_another_is_given(record: Record) -> None:
    assert pool(EngineConfig.from_settings(block_size=16), record).cache.num_blocks == 50
    assert pool(EngineConfig.from_settings(num_blocks=7), record).cache.num_blocks == 7
    assert pool(EngineConfig(), record).model.max_model_len == 1000
