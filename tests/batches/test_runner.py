"""Batches run to their end, whatever happens on the way; killed at any moment, no line is lost or doubled."""

import asyncio
import io
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxserve.batches import runner as runner_module
from jaxserve.batches.errors import StoreFull
from jaxserve.batches.lines import Line
from jaxserve.batches.records import ENDED, Batch
from jaxserve.batches.runner import BatchRunner, LineResult
from jaxserve.batches.store import Store
from jaxserve.core.errors import EngineStopped

ENDPOINT = "/v1/completions"
PATIENCE_S = 60.0
"""How long a scenario may take on however busy a machine; what it has not come to by then fails the test."""


def line(i: int, **changed: Any) -> str:
    return json.dumps({"custom_id": f"c{i}", "method": "POST", "url": ENDPOINT, "body": {"i": i}} | changed)


async def answer(endpoint: str, body: dict[str, Any]) -> LineResult:
    await asyncio.sleep(0)
    if body["i"] % 10 == 9:
        return LineResult(400, {"error": {"message": "no"}}, "r")
    return LineResult(200, {"echo": body["i"]}, "r")


class Scenario:
    """A store, a clock, and a runner that runs until the batches have ended."""

    def __init__(self, folder: Path, room: int = 4) -> None:
        self.store = Store(folder, 1 << 30)
        self.now, self.most, self.room = 1000.0, 0, room
        self.reports: list[str] = []
        self.changes: list[tuple[str, str]] = []
        self.began: list[tuple[str, int]] = []
        self.begun: set[str] = set()
        self.shares: dict[str, float] = {}

    def begin(self, *lines: str, window_s: float = 100.0, tenant: str = "a") -> str:
        content = io.BytesIO("\n".join(lines).encode())
        file = self.store.add_file(content, tenant, "in", "batch", self.now)
        batch_id = self.store.add_batch(tenant, ENDPOINT, file.id, "24h", window_s, None, self.now).id
        self.begun.add(batch_id)
        return batch_id

    def run(self, run_line: Any = answer, during: Callable[[BatchRunner], Any] | None = None, room: Any = None) -> None:
        running = 0

        async def counted(batch: Batch, line: Line) -> LineResult:
            nonlocal running
            running += 1
            self.most = max(self.most, running)
            self.began.append((batch.id, line.number))
            try:
                return await run_line(batch.endpoint, line.body)
            finally:
                running -= 1

        async def whole() -> None:
            runner = BatchRunner(
                self.store, counted, room or (lambda: self.room), max_lines=1000, now=lambda: self.now,
                share=lambda tenant: self.shares.get(tenant, 1000.0),
                changed=lambda batch: self.changes.append((batch.id, batch.status)), report=self.reports.append,
            )  # fmt: skip
            task = asyncio.create_task(runner.run())
            end = time.monotonic() + PATIENCE_S
            while time.monotonic() < end:
                if during is not None:
                    during(runner)
                told = {batch_id for batch_id, status in self.changes if status in ENDED}
                if not self.store.unfinished() and told >= self.begun:
                    break
                await asyncio.sleep(0.005)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(whole())

    def results(self, batch: Batch) -> tuple[list[dict], list[dict]]:
        def read(file_id: str | None) -> list[dict]:
            return [] if file_id is None else [json.loads(x) for x in self.store.path(file_id).read_text().splitlines()]

        return read(batch.output_file_id), read(batch.error_file_id)


@pytest.fixture
def scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scenario]:
    monkeypatch.setattr(runner_module, "IDLE_S", 0.02)
    monkeypatch.setattr(runner_module, "FULL_S", 0.02)
    made = Scenario(tmp_path)
    yield made
    made.store.close()


def test_every_line_once_in_order(scenario: Scenario) -> None:
    batch_id = scenario.begin(*map(line, range(200)))
    scenario.run()
    batch = scenario.store.batch(batch_id)
    good, bad = scenario.results(batch)
    assert batch.status == "completed" and (batch.total, batch.completed, batch.failed) == (200, 180, 20)
    assert [entry["custom_id"] for entry in good] == [f"c{i}" for i in range(200) if i % 10 != 9]
    assert [entry["custom_id"] for entry in bad] == [f"c{i}" for i in range(9, 200, 10)]
    assert good[3]["response"]["body"] == {"echo": 3} and good[3]["error"] is None
    assert bad[0]["response"]["status_code"] == 400 and len({entry["id"] for entry in good + bad}) == 200
    assert 0 < scenario.most <= 4


@pytest.mark.parametrize(
    ("lines", "code", "number"),
    [
        (["{"], "invalid_json_line", 1),
        (["[]"], "invalid_json_line", 1),
        ([line(0), line(0)], "duplicate_custom_id", 2),
        ([line(0, url="/v1/other")], "mismatched_url", 1),
        ([line(0, method="GET")], "invalid_method", 1),
        ([line(0, custom_id=5)], "missing_required_parameter", 1),
        ([line(0, body=None)], "missing_required_parameter", 1),
        ([line(0, body={"stream": True})], "invalid_body", 1),
        ([line(0).replace('"c0"', '"\\ud800"')], "invalid_json_line", 1),
        ([line(0).replace("0}", "NaN}")], "invalid_json_line", 1),
        (["", "  "], "empty_file", None),
        ([line(i) for i in range(1001)], "too_many_lines", None),
    ],
)
def test_a_file_that_is_wrong_fails_before_it_runs(
    scenario: Scenario, lines: list[str], code: str, number: Any
) -> None:
    batch_id = scenario.begin(*lines)
    scenario.run()
    batch = scenario.store.batch(batch_id)
    assert batch.status == "failed" and batch.output_file_id is None
    assert batch.errors[0]["code"] == code and batch.errors[0]["line"] == number
    assert batch.body()["errors"]["object"] == "list"


def test_cancelling_keeps_what_is_done(scenario: Scenario) -> None:
    async def slow(endpoint: str, body: dict[str, Any]) -> LineResult:
        await asyncio.sleep(0 if body["i"] < 10 else 60)
        return LineResult(200, {}, "r")

    def cancel(runner: BatchRunner) -> None:
        if scenario.store.batch(batch_id).completed >= 10:
            scenario.store.move(batch_id, "cancelling", 1.0)
            runner.wake()

    batch_id = scenario.begin(*map(line, range(50)))
    scenario.run(slow, cancel)
    batch = scenario.store.batch(batch_id)
    assert batch.status == "cancelled" and len(scenario.results(batch)[0]) == batch.completed == 10


def test_what_does_not_run_in_its_window_expires(scenario: Scenario) -> None:
    async def slow(endpoint: str, body: dict[str, Any]) -> LineResult:
        await asyncio.sleep(0 if body["i"] < 10 else 60)
        return LineResult(200, {}, "r")

    def later(runner: BatchRunner) -> None:
        if scenario.store.batch(batch_id).completed >= 10:
            scenario.now = 1101.0

    batch_id = scenario.begin(*map(line, range(50)))
    scenario.run(slow, later)
    batch = scenario.store.batch(batch_id)
    good, bad = scenario.results(batch)
    assert batch.status == "expired" and (batch.completed, batch.failed) == (10, 40)
    assert [entry["custom_id"] for entry in good + bad] == [f"c{i}" for i in range(50)]
    assert {entry["error"]["code"] for entry in bad} == {"batch_expired"} and bad[0]["response"] is None


def test_nothing_runs_where_nothing_is_free(scenario: Scenario) -> None:
    """Interactive work takes all slots for a while; the batch waits and then goes on."""
    free = [0]
    batch_id = scenario.begin(*map(line, range(20)))
    counts: list[int] = []

    def during(runner: BatchRunner) -> None:
        counts.append(scenario.store.batch(batch_id).completed)
        if len(counts) == 30:
            assert counts[-1] == 0 and scenario.most == 0
            free[0] = 2

    scenario.run(during=during, room=lambda: free[0])
    assert scenario.store.batch(batch_id).status == "completed" and scenario.most <= 2


def test_a_full_disk_is_waited_out(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    add, tries = scenario.store.add_results, [0]

    def failing(results: Any) -> None:
        tries[0] += 1
        if 1 < tries[0] < 6:
            raise StoreFull("no room")
        add(results)

    monkeypatch.setattr(scenario.store, "add_results", failing)
    batch_id = scenario.begin(*map(line, range(30)))
    scenario.run()
    batch = scenario.store.batch(batch_id)
    assert batch.status == "completed" and batch.completed + batch.failed == 30 and "no room" in scenario.reports


def test_an_engine_that_stops_loses_nothing(scenario: Scenario) -> None:
    stopped = [0]

    async def stopping(endpoint: str, body: dict[str, Any]) -> LineResult:
        if body["i"] == 7 and stopped[0] < 3:
            stopped[0] += 1
            raise EngineStopped("for now")
        return await answer(endpoint, body)

    batch_id = scenario.begin(*map(line, range(30)))
    scenario.run(stopping)
    batch = scenario.store.batch(batch_id)
    assert batch.status == "completed" and batch.completed + batch.failed == 30 and stopped[0] == 3


async def stuck(endpoint: str, body: dict[str, Any]) -> LineResult:
    """Lines of 100 and more never end."""
    await asyncio.sleep(0 if body["i"] < 100 else 600)
    return LineResult(200, {}, "r")


def test_no_batch_waits_for_the_end_of_another(scenario: Scenario) -> None:
    """Behind a batch that takes all the room, others are checked, cancelled, and expire."""
    ids = {"long": scenario.begin(*map(line, range(100, 150)), window_s=1e6)}
    statuses = lambda: {name: scenario.store.batch(batch_id).status for name, batch_id in ids.items()}  # noqa: E731
    seen: list[dict[str, str]] = []

    def during(runner: BatchRunner) -> None:
        if len(ids) == 1 and scenario.most == 4:
            ids["wrong"] = scenario.begin("{", window_s=1e5)
            ids["unwanted"] = scenario.begin(line(1), window_s=1e5)
            ids["late"] = scenario.begin(line(2), window_s=50.0)
        if len(ids) == 1 or (seen and statuses() == seen[-1]):
            return
        seen.append(statuses())
        if list(seen[-1].values()) == ["in_progress", "failed", "in_progress", "in_progress"]:
            scenario.store.move(ids["unwanted"], "cancelling", scenario.now)
            scenario.now += 60.0
        elif list(seen[-1].values()) == ["in_progress", "failed", "cancelled", "expired"]:
            scenario.store.move(ids["long"], "cancelling", scenario.now)

    scenario.run(stuck, during)
    assert list(statuses().values()) == ["cancelled", "failed", "cancelled", "expired"], seen


def test_the_batch_that_must_end_first_goes_first(scenario: Scenario) -> None:
    slow, fast = scenario.begin(*map(line, range(10)), window_s=900.0), ""

    def during(runner: BatchRunner) -> None:
        nonlocal fast
        if not fast and len(scenario.began) >= 2:
            fast = scenario.begin(*map(line, range(10)), window_s=50.0)

    async def second_waits_for_the_other_batch(endpoint: str, body: dict[str, Any]) -> LineResult:
        while len(scenario.began) == 2 and (not fast or scenario.store.batch(fast).status == "validating"):
            await asyncio.sleep(0.005)
        return LineResult(200, {}, "r")

    scenario.room = 1
    scenario.run(second_waits_for_the_other_batch, during)
    assert [batch_id for batch_id, _ in scenario.began] == [slow] * 2 + [fast] * 10 + [slow] * 8
    assert {scenario.store.batch(one).status for one in (slow, fast)} == {"completed"}


def alternating(scenario: Scenario, **lines: tuple[int, float]) -> list[str]:
    """The tenants of lines in the order in which they begin; `lines`: how many of each, and their window."""
    names = {scenario.begin(*map(line, range(n)), window_s=w, tenant=t): t for t, (n, w) in lines.items()}

    async def together(endpoint: str, body: dict[str, Any]) -> LineResult:
        """No line ends before every batch has been checked."""
        while any(scenario.store.batch(one).status == "validating" for one in names):
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.002)
        return LineResult(200, {}, "r")

    scenario.run(together)
    assert {scenario.store.batch(one).status for one in names} == {"completed"}
    return [names[batch_id] for batch_id, _ in scenario.began]


def test_a_batch_that_must_end_first_does_not_hold_up_another_tenants(scenario: Scenario) -> None:
    began = alternating(scenario, a=(200, 10.0), b=(20, 1000.0))
    assert set(began[60:]) == {"a"}, "b has half of the room until its lines have begun"


def test_the_room_is_divided_by_share(scenario: Scenario) -> None:
    scenario.room, scenario.shares = 8, {"a": 6.0, "b": 2.0}
    began = alternating(scenario, a=(60, 100.0), b=(60, 100.0))
    assert 10 <= began[:70].count("b") <= 25, "a quarter"


def test_a_tenant_never_has_more_than_its_share_of_the_room(scenario: Scenario) -> None:
    scenario.room, scenario.shares = 8, {"a": 3.0}
    alternating(scenario, a=(40, 100.0))
    assert scenario.most == 3
    running, most = [0], [0]

    async def counting(endpoint: str, body: dict[str, Any]) -> LineResult:
        running[0] += 1
        most[0] = max(most[0], running[0])
        await asyncio.sleep(0.002)
        running[0] -= 1
        return LineResult(200, {}, "r")

    scenario.begin(*(line(i, body={"i": i, "n": 5}) for i in range(6)))
    scenario.run(counting)
    assert most[0] == 1, "more than its share runs alone"


def test_a_line_takes_as_much_room_as_it_has_sequences(scenario: Scenario) -> None:
    running, most = [0], [0]

    async def counting(endpoint: str, body: dict[str, Any]) -> LineResult:
        running[0] += body["weight"]
        most[0] = max(most[0], running[0])
        await asyncio.sleep(0.01)
        running[0] -= body["weight"]
        return LineResult(200, {}, "r")

    bodies = [{"n": 2, "weight": 2}, {"prompt": ["a"] * 3, "weight": 3}, {"prompt": [1] * 9, "weight": 1}] * 6
    scenario.begin(*(line(i, body=body | {"i": i}) for i, body in enumerate(bodies)))
    scenario.run(counting)
    assert most[0] == 4, "the room"
    most[0] = 0
    large = scenario.begin(
        line(0, body={"n": 3, "prompt": ["a"] * 3, "weight": 9}), line(1, body={"weight": 1, "n": -1})
    )
    scenario.run(counting)
    assert most[0] == 9 and scenario.store.batch(large).completed == 2, "more than there is room for runs alone"


def test_every_status_is_told(scenario: Scenario) -> None:
    good, wrong = scenario.begin(line(0)), scenario.begin("{")
    scenario.run()
    told = {one: [status for batch_id, status in scenario.changes if batch_id == one] for one in (good, wrong)}
    assert told == {good: ["in_progress", "finalizing", "completed"], wrong: ["failed"]}


CHILD = """
import asyncio, sys
from jaxserve.batches.runner import BatchRunner, LineResult
from jaxserve.batches.store import Store

async def run_line(batch, line):
    await asyncio.sleep(0.02)
    return LineResult(200 if line.body["i"] % 7 else 400, {"echo": line.body["i"]}, "r")

async def main():
    store = Store(sys.argv[1], 1 << 30)
    print("open", flush=True)
    task = asyncio.create_task(BatchRunner(store, run_line, lambda: 8, max_lines=10_000).run())
    while store.unfinished():
        await asyncio.sleep(0.01)
    print("ended", flush=True)

asyncio.run(main())
"""


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """kill -9, again and again, until the batch has ended: every line is there, once."""
    scenario, rng = Scenario(tmp_path), random.Random(5)
    batch_id = scenario.begin(*map(line, range(800)), window_s=1e6)
    scenario.store.move(batch_id, "validating", time.time(), expires_at=int(time.time() + 1e6))
    scenario.store.close()
    kills = 0
    for attempt in range(12):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None and child.stdout.readline() == "open\n"
        try:
            child.wait(rng.uniform(0.02, 0.25) if attempt < 8 else 100)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
            kills += 1
        ended = child.stdout.read() == "ended\n"
        child.stdout.close()
        if ended:
            break
    again = Scenario(tmp_path)
    batch = again.store.batch(batch_id)
    good, bad = again.results(batch)
    assert batch.status == "completed" and kills >= 3
    assert [entry["custom_id"] for entry in good] == [f"c{i}" for i in range(800) if i % 7]
    assert [entry["custom_id"] for entry in bad] == [f"c{i}" for i in range(0, 800, 7)]
    assert (batch.completed, batch.failed) == (len(good), len(bad))
    again.store.close()
