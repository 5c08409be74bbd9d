"""Text from tokens as they come, never half a character.

A token's text depends on the tokens before it (a leading space, a character of several bytes), so a short window is
decoded twice: with and without the new tokens; the difference is the new text. The window moves on whenever the text
ends in a whole character.

    tokens   ... [ context ][ held: not a whole character yet ] new
                 decode(context) is a prefix of decode(context + held + new); the rest is emitted
"""

from collections.abc import Sequence

from jaxserve.text.tokenizer import Tokenizer

CONTEXT = 6
"""Prompt tokens that a first output token may need to be read with."""
_HALF = "\ufffd"


class IncrementalDetokenizer:
    def __init__(self, tokenizer: Tokenizer, prompt_tokens: Sequence[int], skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._window = list(prompt_tokens[-CONTEXT:])
        self._num_context = len(self._window)
        self._context_text = self._decode(self._window)

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        self._window.append(token)
        text = self._decode(self._window)
        if text.endswith(_HALF) and len(self._window) - self._num_context < 8:
            return ""
        return self._emit(text)

    def flush(self) -> str:
        """What is still held, at the end of the output: bytes that never became a character show as U+FFFD."""
        return self._emit(self._decode(self._window)) if len(self._window) > self._num_context else ""

    def _emit(self, text: str) -> str:
        new = text[len(self._context_text) :]
        self._window = self._window[self._num_context :]
        self._num_context = len(self._window)
        self._context_text = self._decode(self._window)
        return new

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens, self._skip)
