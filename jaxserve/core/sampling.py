"""What a caller asks of the sampler: one frozen, validated record a request.

Names, defaults and meanings are those of vLLM and of the OpenAI API, so that a request can be moved over unchanged.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxserve.core.errors import InvalidParameter, TooManyItems

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_TOKENS = 64
MAX_LOGIT_BIAS = 300
MAX_N = 128
MAX_BANNED = 72
"""Tokens that `min_tokens` can hold back: 64 stop tokens, and 8 of the model's own ends of sequence."""

_NUMBERS = (
    "max_tokens", "min_tokens", "n", "temperature", "top_k", "top_p", "min_p", "seed", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "logprobs", "prompt_logprobs",
)  # fmt: skip
_FLAGS = ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens")
_LISTS: tuple[tuple[str, type, str], ...] = (
    ("stop", tuple, "a string, or a list of strings"),
    ("stop_token_ids", tuple, "a list of token ids"),
    ("logit_bias", dict, "a mapping from token ids to numbers"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to turn logits into tokens, and when to stop.

    Raises:
      InvalidParameter: a value out of range; the message names the field and what is accepted.
    """

    max_tokens: int | None = 16
    """Most output tokens; None: as many as the model's length leaves. 0 only scores the prompt."""
    min_tokens: int = 0
    """No end-of-sequence or stop token is sampled before this many output tokens, and no stop string is heeded."""
    n: int = 1
    """Independent completions of the prompt. Completion i of a seeded request uses seed + i."""
    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 (or -1) keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    """Given: the same tokens whatever the request is batched with. None (or -1): drawn from the engine's seed."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    """Added to the logits of these tokens. Keys may be text, as they are in JSON: {"15": -100} is {15: -100}."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    """Log-probabilities of the chosen token and of this many likeliest ones; None: none at all."""
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        put = object.__setattr__  # the record is frozen; these spellings are folded into one
        for name in _NUMBERS + _FLAGS:
            put(self, name, _plain(getattr(self, name)))
        if isinstance(self.stop, str):
            put(self, "stop", (self.stop,))
        for name, kind, accepted in _LISTS:
            value = getattr(self, name)
            try:
                put(self, name, kind(value.tolist() if hasattr(value, "tolist") else value or ()))
            except (TypeError, ValueError) as error:
                raise InvalidParameter(name, value, accepted) from error
        put(self, "stop_token_ids", tuple(_plain(token) for token in self.stop_token_ids))
        biases = {_token(token): _plain(bias) for token, bias in self.logit_bias.items()}
        if len(biases) < len(self.logit_bias):
            raise InvalidParameter("logit_bias", self.logit_bias, "each token once")
        put(self, "logit_bias", biases)
        if self.top_k == -1:
            put(self, "top_k", 0)
        if self.seed == -1:
            put(self, "seed", None)
        self._check_lengths()
        self._check_distribution()
        self._check_lists()
        for name in _FLAGS:
            if not isinstance(value := getattr(self, name), bool):
                raise InvalidParameter(name, value, "true or false")

    @property
    def penalized(self) -> bool:
        """Whether the tokens so far change the logits."""
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0

    def _check_lengths(self) -> None:
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 0, None)
        _whole("min_tokens", self.min_tokens, 0, None)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidParameter("min_tokens", self.min_tokens, f"at most max_tokens, which is {self.max_tokens}")
        _whole("n", self.n, 1, MAX_N)
        if self.seed is not None:
            _whole("seed", self.seed, -(2**63), 2**64 - 1)
        for name in ("logprobs", "prompt_logprobs"):
            if (value := getattr(self, name)) is not None:
                _whole(name, value, 0, MAX_LOGPROBS)

    def _check_distribution(self) -> None:
        _real("temperature", self.temperature, 0.0, 100.0)
        _whole("top_k", self.top_k, 0, None)
        _real("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _real("min_p", self.min_p, 0.0, 1.0)
        _real("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _real("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _real("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_low=True)

    def _check_lists(self) -> None:
        for name, most, kind in (
            ("stop", MAX_STOP_STRINGS, "strings"),
            ("stop_token_ids", MAX_STOP_TOKENS, "token ids"),
            ("logit_bias", MAX_LOGIT_BIAS, "token ids"),
        ):
            if (count := len(getattr(self, name))) > most:
                raise TooManyItems(name, count, most, kind)
        for text in self.stop:
            if not isinstance(text, str) or not text:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidParameter("stop", text, "non-empty strings")
        for token in self.stop_token_ids:
            _whole("stop_token_ids", token, 0, None)
        for token, bias in self.logit_bias.items():
            if type(token) is not int or token < 0:
                raise InvalidParameter("logit_bias", token, "token ids, whole numbers from 0, each with its bias")
            _real("logit_bias", bias, -100.0, 100.0)


def _plain(value: Any) -> Any:
    """A number of NumPy or JAX as Python's own."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _token(key: Any) -> Any:
    """A token id as a mapping has it for a key; JSON's objects have text there."""
    return int(key) if isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 20 else _plain(key)


def _whole(name: str, value: object, low: int, high: int | None) -> None:
    accepted = f"a whole number from {low}" + (f" to {high}" if high is not None else "")
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise InvalidParameter(name, value, accepted)


def _real(name: str, value: object, low: float, high: float, open_low: bool = False) -> None:
    accepted = f"a number {'above' if open_low else 'from'} {low:g} {'and at most' if open_low else 'to'} {high:g}"
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise InvalidParameter(name, value, accepted)
    if value > high or value < low or (open_low and value == low):
        raise InvalidParameter(name, value, accepted)
