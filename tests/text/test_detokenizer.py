"""Pieces of text join to the whole text, and no piece ends in half a character."""

from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.text.detokenizer import IncrementalDetokenizer
from jaxserve.text.tokenizer import Tokenizer

HALF = "\ufffd"
TEXT = st.text(st.sampled_from("abc the queenéüñ日本語🙂👩‍"), max_size=40)
PIECES = st.lists(st.integers(0, 325) | st.sampled_from(["é", "日", "🦜", "\ufffd", " the"]), max_size=40)


def ids_of(tokenizer: Tokenizer, pieces: list[int | str]) -> list[int]:
    return [token for piece in pieces for token in ([piece] if isinstance(piece, int) else tokenizer.encode(piece))]


@settings(max_examples=150, deadline=None)
@given(prompt=TEXT, output=TEXT)
def test_pieces_are_the_whole(tokenizer: Tokenizer, prompt: str, output: str) -> None:
    stream = IncrementalDetokenizer(tokenizer, tokenizer.encode(prompt))
    pieces = [stream.push(token) for token in tokenizer.encode(output)]
    assert not any(piece.endswith("\ufffd") for piece in pieces)
    assert "".join(pieces) + stream.flush() == output


@settings(max_examples=300, deadline=None)
@given(prompt=TEXT, tokens=PIECES, skip=st.booleans())
def test_any_tokens_at_all(tokenizer: Tokenizer, prompt: str, tokens: list[int | str], skip: bool) -> None:
    """Garbage, characters, special tokens and ids beyond the vocabulary: streamed, they read as they do whole."""
    ids = ids_of(tokenizer, tokens)
    stream = IncrementalDetokenizer(tokenizer, tokenizer.encode(prompt), skip)
    pieces = [stream.push(token) for token in ids] + [stream.flush()]
    assert "".join(pieces) == tokenizer.decode(ids, skip)


@settings(max_examples=300, deadline=None)
@given(tokens=PIECES)
def test_any_tokens_of_a_vocabulary_with_lone_bytes(byte_fallback: Tokenizer, tokens: list[int | str]) -> None:
    """Its whole text is spoilt by a bad byte from the run's first byte on; what is out by then stays as it was."""
    ids = ids_of(byte_fallback, tokens)
    stream = IncrementalDetokenizer(byte_fallback, [])
    text = "".join([stream.push(token) for token in ids]) + stream.flush()
    whole = byte_fallback.decode(ids)
    assert text.count(HALF) <= whole.count(HALF)
    assert text == whole or HALF in whole


def test_a_character_after_much_garbage(tokenizer: Tokenizer) -> None:
    character, (bad,) = tokenizer.encode("🦜"), [i for i in range(320) if tokenizer.token_bytes(i) == b"\xff"]
    stream = IncrementalDetokenizer(tokenizer, [])
    assert [stream.push(bad) for _ in range(20)] == [HALF] * 20
    assert [stream.push(token) for token in character] == [""] * (len(character) - 1) + ["🦜"]


def test_a_character_of_several_tokens_comes_at_once(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("🦜")
    assert len(tokens) > 1
    stream = IncrementalDetokenizer(tokenizer, [])
    assert [stream.push(token) for token in tokens] == [""] * (len(tokens) - 1) + ["🦜"]


def test_what_is_unfinished_at_the_end_shows(tokenizer: Tokenizer) -> None:
    stream = IncrementalDetokenizer(tokenizer, [])
    assert stream.push(tokenizer.encode("🦜")[0]) == "" and stream.flush() == "\ufffd"
