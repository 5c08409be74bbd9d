"""The load generator: definitions by hand, a search on a made-up server, and a run against a real one."""

import asyncio
import json
import random
from collections.abc import Iterator

import pytest

pytest.importorskip("aiohttp")

from bench.serve import __main__ as serve
from bench.serve import client, session
from bench.serve.answer import Answer, StreamReading
from bench.serve.generator import run_load
from bench.serve.prompts import Ids, Texts
from bench.serve.rate import best, find_max_rate, judge
from bench.serve.view import LiveView, sparkline
from jaxserve.metrics.slo import Bound
from jaxserve.metrics.summary import Summary
from jaxserve.sim.arrivals import Arrival
from jaxserve.sim.sources import ClosedLoop, OpenLoop, Source
from jaxserve.sim.workload import Workload
from tests.engine.conftest import build_engine
from tests.server import conftest as servers
from tests.server.conftest import Running


@pytest.fixture(scope="module")
def fake() -> Iterator[Running]:
    engine = build_engine(max_model_len=20_000, blocks=3000, max_waiting=50)
    yield from servers.serve(servers.fake_service(engine, max_body_bytes=100_000))


COMPLETION = '{"choices": [{"text": "a", "finish_reason": null}]}'
ROLE = '{"choices": [{"delta": {"role": "assistant", "content": ""}}]}'
CONTENT = '{"choices": [{"delta": {"content": "a"}}]}'
END = '{"choices": [{"delta": {}, "finish_reason": "length"}]}'


def usage(completion: int) -> str:
    return json.dumps({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": completion}})


def read(*events: tuple[str, float]) -> Answer:
    reading, answer = StreamReading(), Answer(0, Arrival(1.0, 5, 3), prompt_tokens=5)
    for data, now in events:
        reading.event(data, now)
    reading.fill(answer)
    return answer


def test_every_chunk_is_a_token() -> None:
    answer = read((COMPLETION, 2.0), (COMPLETION, 2.5), (COMPLETION, 4.0), (usage(3), 4.0), ("[DONE]", 4.0))
    assert answer.token_s == [2.0, 2.5, 4.0] and answer.chunks == 3 and answer.prompt_tokens == 7
    summary = Summary()
    summary.add(answer)
    group = summary.all
    assert (group.ttft.max, group.tpot.max, group.e2e.max) == (1.0, 1.0, 3.0)
    assert group.itl.percentiles((0, 100)) == [0.5, 1.5]


def test_a_role_is_no_token_and_neither_is_an_end() -> None:
    assert read((ROLE, 1.5), (CONTENT, 2.0), (CONTENT, 3.0), (END, 3.1), (usage(2), 3.2)).token_s == [2.0, 3.0]
    assert read((COMPLETION, 2.0), (COMPLETION, 2.1), (usage(1), 2.1)).token_s == [2.0]


def test_several_tokens_a_chunk_came_together() -> None:
    answer = read((CONTENT, 2.0), (CONTENT, 3.0), (usage(5), 3.0))
    assert answer.token_s == [2.0, 2.0, 2.0, 3.0, 3.0] and answer.chunks == 2


def test_errors_in_mid_stream_and_silence_are_failures() -> None:
    assert read((CONTENT, 2.0), ('{"error": {"message": "no memory"}}', 2.5)).failed == "no memory"
    assert read((usage(0), 2.0)).failed == "no output"


def test_prompts_share_what_the_trace_shares() -> None:
    one, two = (Arrival(0.0, 1100, 1, prefix_blocks=blocks) for blocks in ((4, 5), (4, 6)))
    ids = Ids(0, 10, 20)
    a, b = ids(one, 0), ids(two, 1)
    assert len(a) == 1100 and a[:512] == b[:512] and a[512:] != b[512:]
    assert a == ids(one, 0)
    texts = Texts(0, tokens_per_word=2.0, overhead=10.0)
    a, b = texts(one, 0).split(), texts(two, 1).split()
    assert len(a) == 545 and a[:256] == b[:256] and a[256:] != b[256:]


class FakeServer:
    """One request at a time, a second each, on a clock that jumps."""

    async def __call__(self, answer: Answer, now) -> None:
        await asyncio.sleep(0)
        answer.token_s = [now()]


def test_open_and_closed_loops_send_everything_once() -> None:
    arrivals = [Arrival(0.01 * i, 1, 1) for i in range(20)]
    for source in (OpenLoop(arrivals), ClosedLoop(arrivals, users=3)):
        open_now, most = set(), 0

        def watch(answer: Answer, what: str, open_now: set = open_now) -> None:
            nonlocal most
            open_now.add(answer.number) if what == "sent" else open_now.remove(answer.number)
            most = max(most, len(open_now))

        answers = asyncio.run(run_load(source, FakeServer(), watch))
        assert [a.number for a in answers] == list(range(20)) and all(a.token_s for a in answers)
        assert not open_now and (most <= 3 or isinstance(source, OpenLoop))


@pytest.mark.parametrize("start", [1.0, 50.0, 0.01])
def test_the_highest_rate_is_found(start: float) -> None:
    """A made-up server of capacity 7: the wait is that of a queue with exponential services (M/M/1)."""
    bounds = Bound.parse_all("ttft_p99<2")
    most = 7.0 - 4.605170185988092 / 2.0  # P(wait > t) = exp(-(capacity - rate) t) is 1% at t = 2

    async def probe(rate: float):
        summary, rng = Summary(), random.Random(1)
        for i in range(20_000):
            wait = rng.expovariate(7.0 - rate) if rate < 7.0 else 1e6
            summary.add(Answer(i, Arrival(0.0, 1, 1), token_s=[wait]))
        return judge(rate, summary.all, bounds)

    probes = asyncio.run(find_max_rate(probe, start, tolerance=0.02))
    found = best(probes)
    assert found is not None and 0.95 * most < found.rate < 1.03 * most and len(probes) < 20


def test_an_objective_that_never_holds_ends_the_search() -> None:
    async def probe(rate: float):
        summary = Summary()
        summary.add(Answer(0, Arrival(0.0, 1, 1), refused="queue_full"))
        return judge(rate, summary.all, ())

    probes = asyncio.run(find_max_rate(probe, 1.0))
    assert best(probes) is None and "refused" in probes[0].why


@pytest.mark.parametrize("arrivals", ["poisson:1", "gamma:3,2", "on-off:1,9,4,1,2"])
def test_a_rate_keeps_the_pattern(arrivals: str) -> None:
    workload = Workload(arrivals=arrivals, requests=201)
    own, faster = (taken(session.source(workload, rate)) for rate in (None, 20.0))
    assert faster[-1].at_s - faster[0].at_s == pytest.approx(200 / 20.0)
    scale = (own[-1].at_s - own[0].at_s) / 10.0
    assert [a.at_s * scale for a in faster] == pytest.approx([a.at_s - own[0].at_s for a in own])
    assert [a.prompt_tokens for a in faster] == [a.prompt_tokens for a in own]


def taken(source: Source) -> list[Arrival]:
    return [source.take()[1] for _ in iter(lambda: source.more, False)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--find-max-rate"], "needs --slo"),
        (["--prompt-tokens=uniform:9,3"], "HIGH from LOW on"),
        (["--ids=9-3"], "span"),
        (["--arrivals=closed:4,0", "--rate=2"], "come at no rate"),
        (["--arrivals=closed:4,0", "--find-max-rate", "--slo=ttft<1"], "come at no rate"),
        (["--arrivals=saturation", "--rate=2"], "all come at once"),
        (["--requests=0"], "requests = 0"),
        (["--slo=speed<1"], "metrics: ttft"),
        (["--trace=nowhere.jsonl"], "cannot be read"),
    ],
)
def test_what_cannot_work_says_what_can(options: list[str], words: str, capsys, fake: Running) -> None:
    assert serve.main([fake.url, *options]) == 2
    assert words in capsys.readouterr().err


def test_files_are_looked_at_before_a_server_is_asked(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(serve, "_all_servers", lambda *given: pytest.fail("minutes for nothing"))
    (tmp_path / "file").touch()
    for option, words in ((f"--against={tmp_path}/none", "cannot be read"), (f"--json={tmp_path}/file/a", "is a file")):
        assert serve.main(["http://127.0.0.1:1", option]) == 2
        assert words in capsys.readouterr().err


def test_no_server_is_no_traceback(capsys) -> None:
    assert serve.main(["http://127.0.0.1:9"]) == 2
    assert "cannot be reached" in capsys.readouterr().err
    assert serve.main(["http://127.0.0.1:9", "localhost:8000"]) == 2
    assert "url = 'localhost:8000' cannot work: give http://HOST:PORT" in capsys.readouterr().err


def test_without_aiohttp_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(client, "aiohttp", None)
    assert serve.main(["http://127.0.0.1:9"]) == 2
    assert "pip install 'jaxserve[bench]'" in capsys.readouterr().err


def test_a_server_is_measured(fake: Running, tmp_path, capsys) -> None:
    common = ["--requests=12", "--arrivals=closed:4,0", "--slo=ttft<60,tpot<60s"]
    common += ["--prompt-tokens=uniform:5,9", "--output-tokens=uniform:3,6"]
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    assert serve.main([fake.url, *common, "--ids=10-90", "--json", str(first)]) == 0
    stored = json.loads(first.read_text())
    row = stored["rows"][0]
    assert (row["completed"], row["refused"], row["failed"], row["goodput"]) == (12, 0, 0, 1.0)
    assert row["chunks_per_token"] == 1.0 and 0 < row["ttft_p50_s"] <= row["ttft_p99_s"] <= row["e2e_p99_s"]
    assert stored["seeds"] == [0] and "cpu" in stored["machine"] and "api_key" not in stored["arguments"]
    assert 12 * 3 <= row["output_tokens"] <= 12 * 6
    capsys.readouterr()
    options = ["--requests=3", "--rate=50", "--output-tokens=fixed:4", "--against", str(first), "--json", str(second)]
    assert serve.main([fake.url, *options]) == 0
    text = capsys.readouterr().out
    assert "last / first" in text
    assert "not the same: requests: 3, and 12 there\n" in text and "not the same: arrivals: None, and closed" in text


def test_texts_come_out_as_long_as_the_server_counts(fake: Running, tmp_path) -> None:
    """There a character is a token: words are several."""
    path = tmp_path / "a.json"
    assert serve.main([fake.url, "--requests=4", "--rate=50", "--prompt-tokens=fixed:40", "--json", str(path)]) == 0
    assert json.loads(path.read_text())["rows"][0]["prompt_tokens"] == pytest.approx(4 * 40, rel=0.25)


def test_the_search_runs_on_a_server(fake: Running, tmp_path, capsys) -> None:
    path = tmp_path / "a.json"
    options = ["--requests=3", "--rate=20", "--find-max-rate", "--slo=ttft_p99<60", "--output-tokens=fixed:2"]
    assert serve.main([fake.url, *options, "--json", str(path), "--most-probes=3"]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [row["rate"] for row in rows] == [20.0, 40.0, 80.0, 80.0] and "probe 1" in rows[0]["name"]


def test_the_view_shows_what_is_known_so_far(capsys) -> None:
    async def look() -> None:
        async with LiveView("somewhere", 2, Summary(), show=True) as view:
            answer = Answer(0, Arrival(0.0, 1, 3), token_s=[0.5, 0.6, 0.7])
            view.watch(answer, "sent")
            view.watch(answer, "ended")

    asyncio.run(look())
    text = capsys.readouterr().err
    assert "done 1 of 2, open 0" in text and "TTFT  ms   p50    500.0" in text and "TPOT  ms   p50    100.0" in text
    assert sparkline([0.0, 1.0, 2.0]) == " ▄█"
