"""A real engine's record, run again on the virtual clock: the same decisions in the same order."""

import random
from pathlib import Path

import pytest

from jaxserve.core.sampling import SamplingParams
from jaxserve.core.sequence import Request
from jaxserve.sim.record_reader import read_record
from jaxserve.sim.recorder import open_recording, record_engine
from jaxserve.sim.replay import replay
from tests.equivalence.conftest import SMALL_POOL


@pytest.mark.parametrize("settings", [{}, {"overlap": False, "policy": "adaptive", "tpot_slo_s": 0.05}], ids=str)
def test_the_same_decisions(make_llm, tmp_path: Path, settings: dict) -> None:
    """Prompts that share beginnings, several completions, stop tokens, aborts, and a pool that is too small."""
    llm, rng = make_llm(**SMALL_POOL | settings), random.Random(4)
    engine = llm.engine
    with open_recording(tmp_path / "r") as file:
        recorder = record_engine(engine, file, llm.config, llm.tenants)
        number, steps = 0, 0
        while number < 40 or engine.has_work:
            while number < 40 and rng.random() < 0.4:
                begin = [rng.randrange(3)] * rng.choice([0, 16, 32])
                prompt = (*begin, *(rng.randrange(211) for _ in range(rng.randint(1, 60))))
                params = SamplingParams(
                    max_tokens=rng.randint(1, 24), n=rng.choice([1, 1, 2]), temperature=1.0, seed=number,
                    stop_token_ids=tuple(range(0, 211, 20)),
                )  # fmt: skip
                engine.add(Request(id=str(number), prompt=prompt, params=params, arrival_s=engine.now))
                number += 1
            if steps % 25 == 24:
                engine.abort(str(number - 1))
            engine.step()
            steps += 1
        recorder.close(engine.scheduler.live())
    record = read_record(tmp_path / "r")
    assert {end.reason for r in record.requests for end in r.ends.values()} == {"stop", "length", "abort"}
    report = replay(record)
    assert report.first_difference is None, (report.was, report.became)
    assert report.same == report.steps > 50
