"""Log-probabilities in the two formats of the OpenAI API.

completions    four parallel lists: tokens, token_logprobs, top_logprobs, text_offset; null where there is no context
chat           one object a token: token, logprob, bytes, top_logprobs

A token that is no whole character is written `bytes:\\xe6\\x97` in both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxserve.core.plan import TokenLogprobs
from jaxserve.text.tokenizer import Tokenizer

LOWEST = -9999.0
"""Stands for minus infinity, which JSON does not have; the number is vLLM's."""


@dataclass(frozen=True, slots=True)
class LogprobsFormat:
    """`as_ids`: tokens are named `token_id:N` instead of by their text. Without a tokenizer they always are."""

    tokenizer: Tokenizer | None
    as_ids: bool = False

    def completion(self, entries: Sequence[TokenLogprobs | None], tokens: Sequence[int], offset: int) -> dict[str, Any]:
        """`tokens[i]` has log-probabilities `entries[i]`; the first character of them is at `offset` of the text."""
        names = [self.name(token) for token in tokens]
        offsets: list[int] = []
        for name in names:
            offsets.append(offset)
            offset += len(name)
        return {
            "tokens": names,
            "token_logprobs": [None if entry is None else finite(entry.logprob) for entry in entries],
            "top_logprobs": [None if entry is None else self._top(entry) for entry in entries],
            "text_offset": offsets,
        }

    def chat(self, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
        content = [
            self._entry(entry.token, entry.logprob) | {"top_logprobs": [self._entry(*pair) for pair in entry.top]}
            for entry in entries
        ]
        return {"content": content, "refusal": None}

    def prompt(self, entries: Sequence[TokenLogprobs | None]) -> list[dict[str, Any] | None]:
        """vLLM's: an object a prompt token, from token id to what is known of it; null for the first."""
        return [None if entry is None else self._prompt_token(entry) for entry in entries]

    def name(self, token: int) -> str:
        if self.tokenizer is None or self.as_ids:
            return f"token_id:{token}"
        raw = self.tokenizer.token_bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _top(self, entry: TokenLogprobs) -> dict[str, float]:
        """The likeliest tokens, and the token itself where it is not among them."""
        pairs = dict(entry.top) | {entry.token: entry.logprob}
        named: dict[str, float] = {}
        for token, logprob in sorted(pairs.items(), key=lambda pair: -pair[1]):
            named.setdefault(self.name(token), finite(logprob))
        return named

    def _prompt_token(self, entry: TokenLogprobs) -> dict[str, Any]:
        ranked = {token: (logprob, rank) for rank, (token, logprob) in enumerate(entry.top, 1)}
        ranked[entry.token] = (entry.logprob, entry.rank)
        return {
            str(token): {"logprob": finite(logprob), "rank": rank, "decoded_token": self.name(token)}
            for token, (logprob, rank) in ranked.items()
        }

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        raw = None if self.tokenizer is None else list(self.tokenizer.token_bytes(token))
        return {"token": self.name(token), "logprob": finite(logprob), "bytes": raw}


def finite(logprob: float) -> float:
    return max(logprob, LOWEST)
