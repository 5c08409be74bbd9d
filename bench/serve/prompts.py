"""Prompts of a wanted length, no two alike, but for the beginnings that a trace says are shared.

Texts are made of short common words. How many tokens a word takes depends on the tokenizer, so the server is asked
once: it counts two texts, and the slope and the offset (a chat template, a first token) follow.
"""

import random
from dataclasses import dataclass

from bench.serve.client import Client, Wire
from jaxserve.sim.arrivals import Arrival

_COMMON = """
the of and to in is that it was for on are as with his they at be this from have or by one had not but what all were
when we there can an your which their if do will each how them then she many some so these would other into has more
her two like him see time could no make than first been its who now people my made over did down only way find use may
water long little very after words called just where most know
"""
WORDS = _COMMON.split()


@dataclass(frozen=True, slots=True)
class Texts:
    """`tokens_per_word`, `overhead`: as the server counts."""

    seed: int
    tokens_per_word: float = 1.0
    overhead: float = 0.0

    def __call__(self, arrival: Arrival, number: int) -> str:
        words: list[str] = []
        for block in arrival.prefix_blocks:
            words += self._words(f"block {block}", arrival.block_tokens)
        words += self._words(f"request {number}", arrival.prompt_tokens)
        wanted = round((arrival.prompt_tokens - self.overhead) / self.tokens_per_word)
        return " ".join(words[: max(wanted, 1)])

    def _words(self, name: str, tokens: int) -> list[str]:
        rng = random.Random(f"{self.seed} {name}")
        return rng.choices(WORDS, k=max(round(tokens / self.tokens_per_word), 1))


@dataclass(frozen=True, slots=True)
class Ids:
    """Token ids from `low` to `high`: exact lengths, for servers whose completions take ids."""

    seed: int
    low: int
    high: int

    def __call__(self, arrival: Arrival, number: int) -> list[int]:
        ids: list[int] = []
        for block in arrival.prefix_blocks:
            ids += self._ids(f"block {block}", arrival.block_tokens)
        return (ids + self._ids(f"request {number}", arrival.prompt_tokens))[: arrival.prompt_tokens]

    def _ids(self, name: str, count: int) -> list[int]:
        rng = random.Random(f"{self.seed} {name}")
        return rng.choices(range(self.low, self.high + 1), k=count)


async def measured_texts(client: Client, wire: Wire, seed: int, short: int = 8, long: int = 72) -> Texts:
    """Texts whose lengths come out right on this server; a word is a token where it does not say."""
    counts: list[int | None] = []
    for words in (short, long):
        text = Texts(seed)(Arrival(0.0, words, 1), -words)
        counts.append((await client.usage(wire, text)).get("prompt_tokens"))
    if counts[0] is None or counts[1] is None or counts[1] <= counts[0]:
        return Texts(seed)
    slope = (counts[1] - counts[0]) / (long - short)
    return Texts(seed, slope, max(counts[0] - slope * short, 0.0))
