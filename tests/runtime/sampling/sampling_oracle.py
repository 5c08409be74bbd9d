"""What the sampler must do, in NumPy float64 and by sorting: slow and plain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One sampled row: its history and its parameters."""

    prompt: Sequence[int] = (0,)
    output: Sequence[int] = ()
    seed: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    banned: Sequence[int] = ()
    min_tokens: int = 0


def process(logits: NDArray[np.float32], row: Row) -> Array:  # [V]
    """Biases, bans and penalties."""
    out = logits.astype(np.float64)
    for token, bias in row.logit_bias.items():
        out[token] += bias
    if len(row.output) < row.min_tokens:
        out[list(row.banned)] = -np.inf
    for token in set(row.prompt) | set(row.output):
        out[token] = out[token] / row.repetition if out[token] > 0 else out[token] * row.repetition
    for token in set(row.output):
        out[token] -= row.frequency * list(row.output).count(token) + row.presence
    return out


def keep(weights: Array, top_k: int, top_p: float) -> NDArray[np.bool_]:  # [V]
    """The top_k likeliest, then the fewest of them whose share reaches top_p; equal weights by id."""
    order = np.argsort(-weights, kind="stable")
    if top_k > 0:
        order = order[:top_k]
    if top_p < 1.0:
        mass = np.cumsum(weights[order])
        order = order[: int(np.argmax(mass >= top_p * mass[-1])) + 1]
    kept = np.zeros(len(weights), bool)
    kept[order] = True
    return kept


def distribution(logits: NDArray[np.float32], row: Row) -> Array:  # [V]
    """The probability of each token."""
    processed = process(logits, row)
    if row.temperature == 0.0:
        return np.eye(len(logits))[int(np.argmax(processed))]
    weights = np.exp((processed - processed.max()) / row.temperature)
    weights[weights < row.min_p] = 0.0
    weights *= keep(weights, row.top_k, row.top_p)
    return weights / weights.sum()


def log_softmax(logits: NDArray[np.float32]) -> Array:  # [..., V]
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
