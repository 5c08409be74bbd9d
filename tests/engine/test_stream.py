"""A stream of outputs: who reads late, what is open, and how it ends."""

import asyncio

import pytest

from jaxserve.core.errors import DeadlineExceeded, EngineStopped, ReaderTooSlow
from jaxserve.core.sequence import FinishReason
from jaxserve.engine.outputs import SequenceOutput
from jaxserve.engine.stream import OutputStream
from tests.engine.conftest import request


def outputs(count: int) -> list[SequenceOutput]:
    return [SequenceOutput("a", 0, tokens=[i]) for i in range(count)]


def test_a_backlog_counts_from_the_first_fetch() -> None:
    async def whole() -> None:
        aborted: list[str] = []
        cuts: list[int] = []
        stream = OutputStream([request("a", [1])], aborted.extend, max_backlog=5)
        for output in outputs(20):
            stream.push(output)
        assert len(await stream.next()) == 20 and not aborted
        for output in outputs(5):
            stream.push(output)
        assert not aborted and len(await stream.next()) == 5, "as many as the bound"
        for output in outputs(6):
            stream.push(output)
        assert aborted == ["a"]
        stream.on_overflow(lambda: cuts.append(1))
        assert cuts == [1], "told at once, since it has happened"
        with pytest.raises(ReaderTooSlow):
            await stream.next()

    asyncio.run(whole())


def test_a_reader_that_is_stuck_is_cut_when_its_backlog_passes_the_bound() -> None:
    async def whole() -> None:
        cuts: list[int] = []
        stream = OutputStream([request("a", [1])], lambda ids: None, max_backlog=2)
        stream.on_overflow(lambda: cuts.append(1))
        stream.push(outputs(1)[0])
        await stream.next()
        for output in outputs(3):
            assert not cuts
            stream.push(output)
        assert cuts == [1] and stream.failed

    asyncio.run(whole())


def end(name: str, index: int = 0) -> SequenceOutput:
    return SequenceOutput(name, index, finish_reason=FinishReason.LENGTH)


def test_a_request_is_open_until_each_of_its_sequences_has_ended() -> None:
    async def whole() -> None:
        aborted: list[str] = []
        stream = OutputStream([request("a", [1], n=2), request("b", [1])], aborted.extend)
        assert [stream.num_open(name) for name in ("a", "b", "c")] == [2, 1, 0]
        stream.push(end("a"))
        assert stream.has("a") and stream.num_open("a") == 1
        stream.push(end("a", 1))
        assert not stream.has("a") and not stream.ended
        stream.push(SequenceOutput("a", 1, "late"))
        assert [output.text for output in await stream.next()] == ["", ""], "what has ended says no more"
        stream.close()
        stream.close()
        assert aborted == ["b"], "only what has not ended, and once"

    asyncio.run(whole())


def test_a_stream_that_has_ended_cannot_fail() -> None:
    async def whole() -> None:
        aborted: list[str] = []
        stream = OutputStream([request("a", [1])], aborted.extend)
        stream.push(end("a"))
        stream.fail(EngineStopped("late"))
        assert stream.ended and not stream.failed and not aborted
        assert len(await stream.next()) == 1 and await stream.next() == []

    asyncio.run(whole())


def test_the_first_error_counts_and_comes_after_what_is_ready() -> None:
    async def whole() -> None:
        aborted: list[str] = []
        stream = OutputStream([request("a", [1])], aborted.extend)
        stream.push(outputs(1)[0])
        stream.fail(EngineStopped("first"))
        stream.fail(EngineStopped("second"))
        assert stream.ended and stream.failed and aborted == ["a"]
        assert len(await stream.next()) == 1
        with pytest.raises(EngineStopped, match="first"):
            await stream.next()

    asyncio.run(whole())


def test_a_deadline_ends_a_stream_unless_it_was_closed() -> None:
    async def whole() -> None:
        aborted: list[str] = []
        late = OutputStream([request("a", [1])], aborted.extend, timeout_s=0.0)
        done = OutputStream([request("b", [1])], aborted.extend, timeout_s=0.0)
        done.push(end("b"))
        done.close()
        with pytest.raises(DeadlineExceeded):
            await late.next()
        assert aborted == ["a"] and not done.failed and done._timer is None

    asyncio.run(whole())
