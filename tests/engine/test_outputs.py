"""Where an output ends: at a stop string in its text, at a stop token, and at neither before `min_tokens`."""

from collections.abc import Sequence
from typing import Any

import pytest

from jaxserve.engine.outputs import OutputProcessor
from tests.engine.conftest import assert_whole, build_engine, request
from tests.engine.test_equivalence import expected

PROMPT = [1, 2, 3]
WHOLE = expected(PROMPT, 20)


class Letters:
    """Stands for a tokenizer: a token is a letter."""

    special_ids = frozenset[int]()

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(ord("a") + token % 26) for token in tokens)

    def token_bytes(self, token: int) -> bytes:
        return self.decode([token]).encode()


TEXT = Letters().decode(WHOLE)


def run(overlap: bool, eos: tuple[int, ...] = (), **params: Any) -> tuple[str, list[int], str | None, int | str | None]:
    """(text, tokens, why it ended, at what) of a request on the fake device."""
    engine = build_engine(overlap=overlap)
    engine._outputs = OutputProcessor(Letters())  # type: ignore[arg-type]
    engine.add(request("r", PROMPT, eos=eos, max_tokens=20, **params))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert_whole(engine)
    text, tokens = "".join(o.text for o in outputs), [token for o in outputs for token in o.tokens]
    assert len(engine.fake.plans) <= len(tokens) + 1 + overlap, "it went on behind its end"  # type: ignore[attr-defined]
    return text, tokens, outputs[-1].finish_reason, outputs[-1].stop_reason


@pytest.mark.parametrize("overlap", [True, False])
def test_a_stop_string_ends_the_sequence_with_the_token_that_completes_it(overlap: bool) -> None:
    stop = TEXT[5:8]
    end = TEXT.find(stop) + 3
    assert end < 20
    assert run(overlap, stop=(stop,)) == (TEXT[: end - 3], WHOLE[:end], "stop", stop)
    included = run(overlap, stop=(stop,), include_stop_str_in_output=True)
    assert included == (TEXT[:end], WHOLE[:end], "stop", stop)


@pytest.mark.parametrize("overlap", [True, False])
def test_nothing_ends_before_min_tokens(overlap: bool) -> None:
    """Neither at a stop string nor at an end token, which the device bans until then."""
    assert run(overlap, stop=(TEXT[5:8],), min_tokens=20) == (TEXT, WHOLE, "length", None)
    for ends in ({"eos": (WHOLE[4],)}, {"stop_token_ids": (WHOLE[4],)}):
        assert run(overlap, **ends)[1] == WHOLE[: WHOLE.index(WHOLE[4]) + 1]
        _, tokens, *end = run(overlap, **ends, min_tokens=20)
        assert len(tokens) == 20 and WHOLE[4] not in tokens and end == ["length", None]
