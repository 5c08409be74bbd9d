"""Text from tokens as they come, never half a character.

A token's text depends on the tokens before it (a leading space, a character of several bytes), so a short window is
decoded twice: with and without the new tokens; the difference is the new text. Tokens are held while their bytes end in
what may still become a character, at most three bytes; the window moves on with every text that is given out.

    tokens   ... [ context ][ held: the beginning of a character ] new
                 decode(context) is a prefix of decode(context + held + new); the rest is emitted
"""

import codecs
from collections.abc import Sequence

from jaxserve.text.tokenizer import Tokenizer

CONTEXT = 6
"""Prompt tokens that a first output token may need to be read with."""


class IncrementalDetokenizer:
    def __init__(self, tokenizer: Tokenizer, prompt_tokens: Sequence[int], skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")  # keeps what may still become a character
        self._window = list(prompt_tokens[-CONTEXT:])
        self._num_context = len(self._window)
        self._context_text = self._decode(self._window)

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        if token in self._skipped:
            return ""
        self._window.append(token)
        self._bytes.decode(self._tokenizer.token_bytes(token))
        unfinished, _ = self._bytes.getstate()
        return "" if unfinished else self._emit()

    def flush(self) -> str:
        """What is still held, at the end of the output: bytes that never became a character show as U+FFFD."""
        return self._emit() if len(self._window) > self._num_context else ""

    def _emit(self) -> str:
        text, held = self._decode(self._window), self._window[self._num_context :]
        held_text = self._decode(held)
        # byte-fallback decoders spoil a whole run of bytes for one bad byte, characters that are out already included
        new = text[len(self._context_text) :] if text.startswith(self._context_text) else held_text
        self._window, self._num_context, self._context_text = held, len(held), held_text
        return new

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens, self._skip)
