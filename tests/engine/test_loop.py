"""The engine on its thread: outputs arrive, leaving early aborts, an end is an error and not a wait for ever; and what
can be asked of it."""

import asyncio
import pickle
import threading
from contextlib import aclosing
from pathlib import Path

import pytest

from jaxserve.core.clock import MonotonicClock
from jaxserve.core.errors import DuplicateRequest, EngineStopped, JaxserveError, PromptTooLong
from jaxserve.core.step_record import Compilation
from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.engine.client import EngineClient
from jaxserve.engine.facts import Compilations, EngineFacts
from jaxserve.engine.loop import EngineLoop
from jaxserve.engine.profile import ProfileRunning
from jaxserve.metrics.view import Seen
from tests.engine.conftest import build_engine, request


async def collect(loop: EngineLoop, wanted) -> list[int]:
    return [token async for output in loop.generate(wanted) for token in output.tokens]


def run(scenario, *, device=None, profiler=None, **options):
    async def whole():
        loop = EngineLoop(build_engine(**options), device=device, profiler=profiler)
        loop.start()
        try:
            async with asyncio.timeout(60):
                return await scenario(loop)
        finally:
            await loop.stop()

    return asyncio.run(whole())


def test_many_at_once() -> None:
    async def scenario(loop: EngineLoop):
        return await asyncio.gather(*(collect(loop, request(str(i), [i, 5])) for i in range(20)))

    assert [len(tokens) for tokens in run(scenario)] == [8] * 20


def test_a_refusal_reaches_its_caller_only() -> None:
    async def scenario(loop: EngineLoop):
        good = asyncio.ensure_future(collect(loop, request("good", [1], max_tokens=100)))
        await asyncio.sleep(0)
        with pytest.raises(DuplicateRequest):
            await collect(loop, request("good", [1]))
        with pytest.raises(PromptTooLong):
            await collect(loop, request("bad", [1] * 500))
        return await good

    assert len(run(scenario)) == 100


def test_leaving_early_frees_the_blocks() -> None:
    async def scenario(loop: EngineLoop):
        async with aclosing(loop.generate(request("gone", [1] * 30, max_tokens=200))) as pieces:
            async for _ in pieces:
                break
        await collect(loop, request("next", [2]))
        return loop.engine.scheduler.blocks.pool

    pool = run(scenario)
    assert pool.num_free == pool.capacity


def test_stopping_ends_callers_with_an_error() -> None:
    async def scenario(loop: EngineLoop):
        waiting = asyncio.ensure_future(collect(loop, request("r", [1] * 30, max_tokens=220)))
        await asyncio.sleep(0)
        await loop.stop()
        await asyncio.sleep(0)
        with pytest.raises(EngineStopped):
            await waiting
        with pytest.raises(EngineStopped):
            await collect(loop, request("late", [1]))

    run(scenario)


def test_a_batch_waits_for_company_and_not_for_ever() -> None:
    """`dynamic`: a lone request starts after the timeout, without the thread spinning."""

    async def scenario(loop: EngineLoop):
        tokens = await collect(loop, request("alone", [1]))
        return len(tokens), loop.num_steps

    tokens, steps = run(scenario, policy="dynamic", batch_timeout_s=0.05, clock=MonotonicClock())
    assert tokens == 8 and steps < 20


def test_a_full_batch_starts_at_once() -> None:
    async def scenario(loop: EngineLoop):
        return await asyncio.gather(*(collect(loop, request(str(i), [i])) for i in range(4)))

    assert [len(tokens) for tokens in run(scenario, policy="static", batch_size=2)] == [8] * 4


def test_it_is_a_client_in_every_part() -> None:
    parts = {name for name in vars(EngineClient) if not name.startswith("_")}
    assert len(parts) > 15 and not parts - vars(EngineLoop).keys()


class Device:
    compilations_after_warmup = 3
    compilations = (Compilation(1.0, 0.5),)
    kv_bytes = 65 * 100


def test_facts_are_data_taken_once() -> None:
    tenants = Tenants([Tenant(name="few", max_waiting=2), Tenant(name="many", max_waiting=50)])
    engine = build_engine(blocks=64, max_model_len=256, tenants=tenants, max_waiting=10)
    facts = EngineFacts.of(engine, Device())
    assert facts.limits == engine.limits and facts.tenants is tenants
    assert (facts.max_num_seqs, facts.max_num_batched_tokens) == (8, 32)
    assert (facts.block_size, facts.num_blocks, facts.block_bytes) == (8, 64, 100), "the scratch block has bytes too"
    assert facts.most_waiting_of("few") == (2, "max_waiting of tenant 'few'")
    assert facts.most_waiting_of("many") == facts.most_waiting_of("nobody") == (10, "max_waiting")
    loop = EngineLoop(engine)
    assert loop.facts is loop.facts and loop.facts.block_bytes == 0 and loop.compilations == Compilations(0, ())
    assert EngineLoop(engine, device=Device()).compilations == Compilations(3, (Compilation(1.0, 0.5),))


def test_questions_are_answered_with_data() -> None:
    async def scenario(loop: EngineLoop):
        await collect(loop, request("gone", [1, 2, 3], max_tokens=4))
        assert loop.num_open == 0
        stream = loop.open([request("here", [4] * 9, max_tokens=200, n=2)])
        await stream.next()
        assert loop.num_open == 2
        shot = await loop.snapshot(60)
        seen = Seen()
        content, seen = await loop.view(seen, 60)
        again, _ = await loop.view(seen, 60)
        decisions = await loop.decisions(60)
        states = await loop.request_states(["gone", "here", "unheard of"], 60)
        for answer in (shot, content, seen, decisions, states):
            assert pickle.loads(pickle.dumps(answer)) == answer
        assert shot.running.total() <= 2 and len(decisions) >= 4
        assert content["steps"] and all(s["number"] > content["steps"][-1]["number"] for s in again["steps"])
        assert set(states) == {"gone", "here/0", "here/1"}
        assert states["gone"].state == "length" and states["gone"].first_token is not None
        assert loop.counts.counters["request_success"]["length",] == 1 and loop.num_steps >= 4
        stream.close()

    run(scenario, clock=MonotonicClock())


def test_what_was_asked_does_not_change_afterwards() -> None:
    async def scenario(loop: EngineLoop):
        await collect(loop, request("a", [1, 2, 3], max_tokens=4))
        decisions = await loop.decisions(60)
        before = pickle.dumps(decisions)
        await collect(loop, request("b", [1, 2, 3], max_tokens=4))
        assert pickle.dumps(decisions) == before

    run(scenario, clock=MonotonicClock())


def test_steps_are_counted_from_start_to_stop() -> None:
    async def scenario(loop: EngineLoop):
        assert len(loop.engine.observers) == 1
        return loop.engine

    assert not run(scenario).observers


def test_a_question_to_an_engine_that_has_ended_or_is_busy() -> None:
    async def scenario(loop: EngineLoop):
        hold = threading.Event()
        loop._thread.send(hold.wait)
        with pytest.raises(TimeoutError):
            await loop.snapshot(0.01)
        hold.set()
        await loop.snapshot(60)
        await loop.stop()
        with pytest.raises(EngineStopped):
            await loop.snapshot(60)

    run(scenario)


class Profiler:
    """Stands for `runtime.profile`."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def start(self, folder: Path) -> None:
        if self.calls[-1:] == ["start"]:
            raise RuntimeError("twice")
        self.calls.append("start")

    def stop(self, folder: Path) -> None:
        self.calls.append("stop")


def test_a_profile_counts_the_steps_that_were_planned_in_it() -> None:
    profiler = Profiler()

    async def scenario(loop: EngineLoop):
        await collect(loop, request("before", [1]))
        taken = asyncio.ensure_future(loop.profile(Path("here"), 3, 60.0))
        while profiler.calls != ["start"]:
            await asyncio.sleep(0.001)
        with pytest.raises(ProfileRunning, match="wait for its end"):
            await loop.profile(Path("here"), 3, 60.0)
        while not taken.done():
            await collect(loop, request("in it", [1], max_tokens=2))
        assert await taken >= 3 and profiler.calls == ["start", "stop"]
        assert await loop.profile(Path("here"), 3, 0.0) == 0 and profiler.calls[2:] == ["start", "stop"]
        assert len(loop.engine.observers) == 1

    run(scenario, clock=MonotonicClock(), profiler=profiler)


def test_without_a_profiler_it_says_how_to_have_one() -> None:
    async def scenario(loop: EngineLoop):
        with pytest.raises(JaxserveError, match="profiler="):
            await loop.profile(Path("here"), 1, 1.0)

    run(scenario)
