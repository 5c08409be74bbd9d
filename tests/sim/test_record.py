"""Records: what is written can be read, tells no text, and runs again decision by decision."""

import gzip
import io
import json
import random
from pathlib import Path

import pytest

from jaxserve.core.clock import VirtualClock
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError
from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.costs.model import FormulaCost
from jaxserve.sim.arrivals import Arrival, poisson
from jaxserve.sim.build import simulated
from jaxserve.sim.drive import Served, drive
from jaxserve.sim.record import Record
from jaxserve.sim.record_reader import read_record
from jaxserve.sim.recorder import Recorder, open_recording
from jaxserve.sim.replay import replay
from jaxserve.sim.traces import read_trace

COST = FormulaCost(
    source="made up", overhead_s=0.01, weights_s=0.0, token_s=1e-4, pair_s=0.0, context_s=1e-6, row_s=1e-3
)
TENANTS = Tenants([Tenant(name="chat", keys=("secret-key",), priority=0, weight=2.0), Tenant(name="batch", priority=1)])


def requests(count: int = 120, seed: int = 1) -> list[Arrival]:
    rng = random.Random(seed)
    times = poisson(rng, 30.0)
    return [
        Arrival(
            next(times), length := rng.randint(1, 120), rng.randint(1, 40), rng.choice(["chat", "batch"]),
            prefix_blocks=tuple(range(rng.randint(0, length // 8))), block_tokens=8,
        )
        for _ in range(count)
    ]  # fmt: skip


def recorded(path: Path, arrivals: list[Arrival], **settings) -> tuple[Record, list[Served]]:
    """A simulated engine that records itself."""
    options = {"num_blocks": 60, "block_size": 8, "max_num_seqs": 8, "max_num_batched_tokens": 64} | settings
    config = EngineConfig.from_settings(**options)
    clock = VirtualClock(1000.0)
    engine = simulated(config, COST, clock, TENANTS).engine
    with path.open("w") as file:
        recorder = Recorder(file, config, options["num_blocks"] + 1, 1 << 31, clock.now(), tenants=TENANTS, cost=COST)
        engine.observers.append(recorder)
        served = list(drive(engine, clock, arrivals))
        recorder.close(engine.scheduler.live())
    return read_record(path), served


def test_a_record_is_not_written_over_and_an_empty_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    open_recording(path).close()  # what a server leaves that did not start
    with open_recording(path) as file:
        file.write("a line\n")
    with pytest.raises(ConfigError, match=r"exists: a record is not written over\. .* one for each start, --record "):
        open_recording(path)
    with pytest.raises(ConfigError, match="cannot be written"):
        open_recording(path / "below")
    assert path.read_text() == "a line\n"


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ordering": "fair"},
        {"ordering": "priority", "policy": "continuous"},
        {"policy": "adaptive", "tpot_slo_s": 0.02},
        {"enable_prefix_caching": False, "chunk_size": 16},
        {"max_waiting": 4},
    ],
    ids=str,
)
def test_a_record_runs_again_decision_by_decision(tmp_path: Path, settings: dict, overlap: bool) -> None:
    """The pool is small: sequences are preempted; prefixes are shared; some settings refuse requests."""
    record, served = recorded(tmp_path / "r", requests(), overlap=overlap, **settings)
    assert len(record.requests) == len(served) == 120
    report = replay(record)
    assert report.first_difference is None, (report.was, report.became)
    assert report.same == report.steps == len(record.steps) > 100


def test_another_decision_is_noticed(tmp_path: Path) -> None:
    record, _ = recorded(tmp_path / "r", requests())
    record.requests[50].queued_s += 0.5
    report = replay(record)
    assert report.first_difference is not None and report.share < 1.0 and report.was != report.became


def test_a_record_is_a_trace(tmp_path: Path) -> None:
    arrivals = requests()
    _, served = recorded(tmp_path / "r", arrivals, max_waiting=6)
    assert any(s.refused for s in served)
    found = list(read_trace(tmp_path / "r"))
    assert [(round(a.at_s, 6), a.prompt_tokens, a.tenant) for a in found] == [
        (round(a.at_s, 6), a.prompt_tokens, a.tenant) for a in arrivals
    ]
    taken = {s.number for s in served if not s.refused}
    assert all(found[n].output_tokens == arrivals[n].output_tokens for n in taken)


def test_a_record_keeps_what_a_request_asked_for_itself(tmp_path: Path) -> None:
    asked = {"priority": 3, "ttft_slo_s": 0.5, "tpot_slo_s": 0.05}
    recorded(tmp_path / "r", [Arrival(0.0, 9, 2, **asked), Arrival(1.0, 9, 2)])
    one, two = read_trace(tmp_path / "r")
    assert {name: getattr(one, name) for name in asked} == asked
    assert not any(getattr(two, name) for name in asked)


def test_equal_beginnings_are_equal_ids(tmp_path: Path) -> None:
    prefixes = ((1, 2), (1, 3), (4, 2))
    arrivals = [Arrival(float(i), 24, 2, prefix_blocks=p, block_tokens=8) for i, p in enumerate(prefixes)]
    record, _ = recorded(tmp_path / "r", arrivals)
    one, two, three = (r.ends[0].blocks for r in record.requests)
    assert one[0] == two[0] != three[0] and one[1] != two[1]
    assert one[1] != three[1], "a chain: 2 after 4 is not 2 after 1"
    again, _ = recorded(tmp_path / "again", arrivals)
    assert again.requests[0].ends[0].blocks != one, "every record has a key of its own"


def test_nothing_tells_what_was_asked(tmp_path: Path) -> None:
    recorded(tmp_path / "r", requests(20))
    text = (tmp_path / "r").read_text()
    assert "secret-key" not in text and '"prompt"' not in text and '"output":' not in text and "embedded" not in text


def test_tokens_are_written_when_asked_for() -> None:
    config = EngineConfig.from_settings(num_blocks=60, block_size=8)
    clock, file = VirtualClock(), io.StringIO()
    engine = simulated(config, COST, clock).engine
    engine.observers.append(Recorder(file, config, 61, 1000, 0.0, tokens=True))
    list(drive(engine, clock, [Arrival(0.0, 3, 2)], lambda arrival, number: (7, 8, 9)))
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert lines[1]["prompt"] == [7, 8, 9] and lines[-1]["output"] == [1, 1]


def test_step_times_can_be_learnt_from_a_record(tmp_path: Path) -> None:
    record, _ = recorded(tmp_path / "r", requests(), overlap=False)
    cost = record.fitted()
    errors = sorted(abs(cost.seconds(step.features) / step.seconds - 1.0) for step in record.steps)
    assert errors[len(errors) // 2] < 0.05 and cost.source.startswith("measured")


def test_what_runs_when_the_record_ends_is_in_it(tmp_path: Path) -> None:
    config = EngineConfig.from_settings(num_blocks=60, block_size=8)
    clock = VirtualClock()
    engine = simulated(config, COST, clock).engine
    with (tmp_path / "r").open("w") as file:
        recorder = Recorder(file, config, 61, 1000, 0.0, cost=COST)
        engine.observers.append(recorder)
        for i in range(3):
            engine.add(Arrival(0.0, 9, 50).request(str(i), (i,) * 9))
        for _ in range(5):
            engine.step()
        engine.abort("2")
        engine.step()
        recorder.close(engine.scheduler.live())
    record = read_record(tmp_path / "r")
    assert [bool(r.ends) for r in record.requests] == [False, False, True]
    assert record.requests[2].ends[0].reason == "abort"
    assert replay(record).share == 1.0


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "empty"),
        (['{"jaxserve_record": 99}'], "1: no record of version 1"),
        (["HEADER", "{"], "2: not JSON"),
        (["HEADER", '{"step": 1}'], "2: no line of a record"),
        (["HEADER", '{"request": 1, "color": 2}'], "2: no line of a record"),
        (["HEADER", '{"end": [5, 0], "blocks": []}'], "2: no line of a record"),
    ],
)
def test_a_damaged_record_names_its_line(tmp_path: Path, lines: list[str], words: str) -> None:
    recorded(tmp_path / "good", requests(2))
    header = (tmp_path / "good").read_text().splitlines()[0]
    path = tmp_path / "bad"
    path.write_text("".join(line.replace("HEADER", header) + "\n" for line in lines))
    with pytest.raises(ConfigError, match=words):
        read_record(path)


def test_a_compressed_record_is_read(tmp_path: Path) -> None:
    record, _ = recorded(tmp_path / "r", requests(3))
    (tmp_path / "r.gz").write_bytes(gzip.compress((tmp_path / "r").read_bytes()))
    assert read_record(tmp_path / "r.gz") == record
    assert len(list(read_trace(tmp_path / "r.gz"))) == 3
    with pytest.raises(ConfigError, match=r"none: cannot be read .*serve --record"):
        read_record(tmp_path / "none")


def test_a_line_that_was_cut_short_ends_the_record(tmp_path: Path) -> None:
    record, _ = recorded(tmp_path / "r", requests(20))
    text = (tmp_path / "r").read_text()
    (tmp_path / "r").write_text(text[: len(text) // 2])
    assert 0 < len(read_record(tmp_path / "r").steps) < len(record.steps)
