"""Text from tokens as they come, never half a character.

A token's text depends on the tokens before it (a leading space, a character of several bytes), so a short window is
decoded twice: with and without the new tokens; the difference is the new text. Tokens are held while their bytes end in
what may still become a character, at most three bytes; the window moves on with every text that is given out.

    tokens   ... [ context ][ held: the beginning of a character ] new
                 decode(context) is a prefix of decode(context + held + new); the rest is emitted

Where bytes that are no text come in, the text is that of the bytes alone: U+FFFD for each broken piece, and characters
as soon as there are some. (Byte-fallback decoders, asked for all of it at once, spoil the whole run of bytes around one
bad byte, characters included that a stream has long given out.)
"""

import codecs
from collections.abc import Sequence

from jaxserve.text.tokenizer import Tokenizer

CONTEXT = 6
"""Prompt tokens that a first output token may need to be read with."""
_BROKEN = "\ufffd"


class IncrementalDetokenizer:
    def __init__(self, tokenizer: Tokenizer, prompt_tokens: Sequence[int], skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")  # keeps what may still become a character
        self._of_bytes = ""  # what the held tokens' bytes say
        self._window = list(prompt_tokens[-CONTEXT:])
        self._num_context = len(self._window)
        self._context_text = self._decode(self._window)

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        raw = self._tokenizer.token_bytes(token)
        if not raw or token in self._skipped:
            return ""
        self._window.append(token)
        self._of_bytes += self._utf8.decode(raw)
        unfinished, _ = self._utf8.getstate()
        return "" if unfinished else self._emit()

    def flush(self) -> str:
        """What is still held, at the end of the output: bytes that never became a character show as U+FFFD."""
        self._of_bytes += self._utf8.decode(b"", final=True)
        return self._emit() if len(self._window) > self._num_context else ""

    def _emit(self) -> str:
        text = self._decode(self._window)
        new = self._of_bytes if _BROKEN in text else text[len(self._context_text) :]
        self._window, self._of_bytes = self._window[self._num_context :], ""
        self._num_context = len(self._window)
        self._context_text = self._decode(self._window)
        return new

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens, self._skip)
