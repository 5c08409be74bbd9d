"""Who is late: the reader of a stream, or the one who has not begun to read."""

import asyncio

import pytest

from jaxserve.core.errors import ReaderTooSlow
from jaxserve.core.sequence import Sequence
from jaxserve.engine.outputs import SequenceOutput
from jaxserve.engine.stream import OutputStream
from tests.engine.conftest import request


def outputs(count: int) -> list[SequenceOutput]:
    sequence = Sequence(request("a", [1]), 0, 100, 0)
    return [SequenceOutput(sequence, "", [i]) for i in range(count)]


def test_a_backlog_counts_from_the_first_fetch() -> None:
    async def whole() -> None:
        aborted: list[str] = []
        cuts: list[int] = []
        stream = OutputStream([request("a", [1])], aborted.extend, max_backlog=5)
        for output in outputs(20):
            stream.push(output)
        assert len(await stream.next()) == 20 and not aborted
        for output in outputs(6):
            stream.push(output)
        assert aborted == ["a"]
        stream.on_overflow(lambda: cuts.append(1))
        assert cuts == [1], "told at once, since it has happened"
        with pytest.raises(ReaderTooSlow):
            await stream.next()

    asyncio.run(whole())
