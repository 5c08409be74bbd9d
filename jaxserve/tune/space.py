"""The choices a search has. A candidate takes one value of each; not every combination makes sense.

`policy` is a batch policy with an ordering, "chunked/shortest"; `buckets` a set by name (`tune.bucket_sets`);
`replicas` so many engines behind a router; `kv_split` how tenants share the KV pool (`tune.kv_splits`); every other
choice is a setting of `core.config` by its flat name.
"""

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxserve.core.config import EngineConfig, all_settings
from jaxserve.core.errors import ConfigError
from jaxserve.core.settings import require
from jaxserve.tune.bucket_sets import fitted_programs

Choice = Mapping[str, Any]
"""A value for each name of the space."""

DEFAULT: dict[str, tuple[Any, ...]] = {
    "policy": ("chunked/fcfs", "chunked/shortest", "adaptive/shortest", "continuous/fcfs"),
    "max_num_batched_tokens": (256, 512, 1024, 2048, 4096, 8192),
    "chunk_size": (None, 256, 1024),
    "max_num_seqs": (32, 64, 128, 256),
    "buckets": ("powers4", "powers2", "fitted-12", "fitted-24"),
    "watermark": (0.01, 0.05),
}
"""`watermark` splits the KV pool: what admission leaves to the sequences that run. With tenants, `kv_split` is searched
as well: what each of them has of it."""
_BESIDE = ("buckets", "replicas", "kv_split")
"""Choices that no setting holds."""
SPECIAL = ("policy", *_BESIDE)


@dataclass(frozen=True)
class Space:
    choices: dict[str, tuple[Any, ...]]

    def __post_init__(self) -> None:
        known = {setting.name: setting for setting in all_settings()}
        for name, values in self.choices.items():
            require(bool(values), name, values, "at least one value")
            for value in values if name in known and name not in SPECIAL else ():
                known[name].accept(value)
        for name in self.choices.get("buckets", ()):
            fitted_programs(str(name))
        for count in self.choices.get("replicas", ()):
            require(type(count) is int and count > 0, "replicas", count, "a positive number")

    def candidates(self, base: EngineConfig) -> Iterator[Choice]:
        """All combinations that differ and can work: a chunk within the budget, a budget with room for the decodes."""
        seen: set[tuple[Any, ...]] = set()
        known: dict[tuple[Any, ...], EngineConfig] = {}  # a space has many choices to each configuration
        for values in itertools.product(*self.choices.values()):
            choice = dict(zip(self.choices, values, strict=True))
            if _sensible(choice):
                plain = tuple(value for name, value in choice.items() if name not in _BESIDE)
                if plain not in known:
                    known[plain] = settings(base, choice)
                key = known[plain], *(choice.get(name) for name in _BESIDE)
                if key not in seen:
                    seen.add(key)
                    yield choice

    def sample(self, base: EngineConfig, most: int | None, rng: random.Random) -> list[Choice]:
        """All candidates, or `most` of them drawn at random; in a drawn order, which decides between equals."""
        found = list(self.candidates(base))
        return rng.sample(found, len(found) if most is None else min(most, len(found)))

    def neighbours(self, choice: Choice) -> Iterator[tuple[str, Choice]]:
        """The choice with one value changed: (what, changed)."""
        for name, values in self.choices.items():
            for value in values:
                changed = {**choice, name: value}
                if value != choice[name] and _sensible(changed):
                    yield name, changed


def settings(base: EngineConfig, choice: Choice) -> EngineConfig:
    """`base` with the choice's settings, without its buckets.

    Raises:
      ConfigError: an unknown setting, or a value that it does not take.
    """
    changed = {name: value for name, value in choice.items() if name not in SPECIAL}
    if "policy" in choice:
        policy, _, ordering = str(choice["policy"]).partition("/")
        changed |= {"policy": policy, "ordering": ordering or "fcfs"}
    if "buckets" in choice:  # those of the base need not cover the choice's limits
        changed |= {"decode_buckets": (), "prefill_buckets": (), "mixed_decode_buckets": ()}
    return base.replace(**changed)


def parse_choices(texts: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    """`parse_choice` of each. Raises ConfigError for a name that is there twice: which of them is meant?"""
    found: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        name, values = parse_choice(text)
        if name in found:
            raise ConfigError(f"choose = {text!r}: {name} is chosen already: give all of its values at once")
        found[name] = values
    return found


def parse_choice(text: str) -> tuple[str, tuple[Any, ...]]:
    """ "max_num_seqs=64,128" or "policy=chunked/fcfs,adaptive/slack"; none, true, false, numbers, words."""
    name, equals, values = text.partition("=")
    if not equals or not values:
        raise ConfigError(f"choose = {text!r}: write NAME=VALUE,VALUE")
    return name.strip(), tuple(_value(value.strip()) for value in values.split(","))


def _value(text: str) -> Any:
    named: dict[str, Any] = {"none": None, "true": True, "false": False}
    if text.lower() in named:
        return named[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _sensible(choice: Choice) -> bool:
    budget, chunk = choice.get("max_num_batched_tokens"), choice.get("chunk_size")
    if budget and budget <= choice.get("max_num_seqs", 0):
        return False
    if chunk and str(choice.get("policy", "")).startswith(("continuous", "static", "dynamic")):
        return False
    return not (budget and chunk and chunk >= budget)
