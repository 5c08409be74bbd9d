"""Pieces of text join to the whole text, and no piece ends in half a character."""

from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.text.detokenizer import IncrementalDetokenizer
from jaxserve.text.tokenizer import Tokenizer

TEXT = st.text(st.sampled_from("abc the queenéüñ日本語🙂👩‍"), max_size=40)


@settings(max_examples=150, deadline=None)
@given(prompt=TEXT, output=TEXT)
def test_pieces_are_the_whole(tokenizer: Tokenizer, prompt: str, output: str) -> None:
    stream = IncrementalDetokenizer(tokenizer, tokenizer.encode(prompt))
    pieces = [stream.push(token) for token in tokenizer.encode(output)]
    assert not any(piece.endswith("\ufffd") for piece in pieces)
    assert "".join(pieces) + stream.flush() == output


@settings(max_examples=150, deadline=None)
@given(tokens=st.lists(st.integers(0, 319), max_size=60))
def test_any_tokens_at_all(tokenizer: Tokenizer, tokens: list[int]) -> None:
    """Bytes that are no text come out as replacement characters, never as an exception, and nothing is lost."""
    stream = IncrementalDetokenizer(tokenizer, [])
    text = "".join(stream.push(token) for token in tokens) + stream.flush()
    whole = tokenizer.decode(tokens)
    assert text.replace("\ufffd", "") == whole.replace("\ufffd", "")


def test_a_character_of_several_tokens_comes_at_once(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("🦜")
    assert len(tokens) > 1
    stream = IncrementalDetokenizer(tokenizer, [])
    assert [stream.push(token) for token in tokens] == [""] * (len(tokens) - 1) + ["🦜"]


def test_what_is_unfinished_at_the_end_shows(tokenizer: Tokenizer) -> None:
    stream = IncrementalDetokenizer(tokenizer, [])
    assert stream.push(tokenizer.encode("🦜")[0]) == "" and stream.flush() == "\ufffd"
