"""The engine on its thread: outputs arrive, leaving early aborts, an end is an error and not a wait for ever."""

import asyncio
from contextlib import aclosing

import pytest

from jaxserve.core.clock import MonotonicClock
from jaxserve.core.errors import DuplicateRequest, EngineStopped, PromptTooLong
from jaxserve.engine.loop import EngineLoop
from tests.engine.conftest import build_engine, request


async def collect(loop: EngineLoop, wanted) -> list[int]:
    return [token async for output in loop.generate(wanted) for token in output.tokens]


def run(scenario, **options):
    async def whole():
        loop = EngineLoop(build_engine(**options))
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
