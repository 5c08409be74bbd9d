"""Stop strings against an oracle that sees the whole text at once."""

from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.text.stop import StopMatcher

LETTERS = st.text(st.sampled_from("ab\n"), max_size=4)


def oracle(pieces: list[str], stops: list[str], include: bool) -> tuple[str, str | None]:
    """The stop string that is complete first ends the text; of several complete at once, the one that began first."""
    whole = "".join(pieces)
    ends = [(whole.find(stop) + len(stop), whole.find(stop), stop) for stop in stops if stop in whole]
    if not ends:
        return whole, None
    end, begin, stop = min(ends)
    return whole[: end if include else begin], stop


@settings(max_examples=400, deadline=None)
@given(
    pieces=st.lists(LETTERS, max_size=12),
    stops=st.lists(LETTERS.filter(bool), min_size=1, max_size=3),
    include=st.booleans(),
)
def test_like_the_oracle(pieces: list[str], stops: list[str], include: bool) -> None:
    matcher = StopMatcher(stops, include)
    text, found = "", None
    for piece in pieces:
        emitted, found = matcher.push(piece)
        text += emitted
        if found is not None:
            break
    else:
        text += matcher.flush()
    # within one piece several may be complete: what counts is where they end in the text, not in which piece
    assert (text, found) == oracle(pieces, stops, include)


def test_only_what_may_become_a_stop_is_held() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("some text E") == ("some text ", None)
    assert matcher.push("N") == ("", None)
    assert matcher.push("x") == ("ENx", None)
    assert matcher.push("END") == ("", "END")


def test_unheeded_text_passes() -> None:
    matcher = StopMatcher(["a"])
    assert matcher.push("a", heed=False) == ("a", None)
    assert matcher.push("a") == ("", "a")
