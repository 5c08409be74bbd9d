"""Rotary settings, in the two spellings that Hugging Face has used.

Older files have `rope_theta` beside `rope_scaling` (null, or an object whose kind is `rope_type` or, older still,
`type`); newer ones have one object `rope_parameters` that holds the theta as well. A file may carry both, as long as
they agree.
"""

import math

from jaxserve.core.fields import Fields
from jaxserve.models.config import RopeConfig, RopeKind

_COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_KEYS: dict[RopeKind, set[str]] = {
    "default": {"factor"},  # written by some, read by nobody
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
        "mscale_all_dim", "truncate",
    },
}  # fmt: skip


def read_rope(fields: Fields) -> RopeConfig:
    """The rotary settings of a `config.json`; CheckpointError if unknown, incomplete or contradictory."""
    newer, older = fields.section("rope_parameters"), fields.section("rope_scaling")
    if newer and (by_layer := sorted(newer.keys() & {"full_attention", "sliding_attention"})):
        fields.fail(f"rope_parameters has settings for {by_layer} each", "supported: one setting for all layers")
    for section in (newer, older):
        if section:
            _check_known(section)
            _check_agreement(section, fields)
    if newer and older:
        _check_agreement(newer, older)
    rope = newer or older or Fields({}, fields.path)
    theta = rope.number("rope_theta", fields.number("rope_theta", 10_000.0))
    if rope.get("partial_rotary_factor", fields.get("partial_rotary_factor", 1.0)) != 1:
        fields.fail("partial_rotary_factor is not 1", "supported: rotary positions over the whole head")
    if not 1 < theta < math.inf:
        fields.fail(f"rope_theta is {theta}", "expected a number above 1")
    kind: RopeKind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta=theta)
    factor = rope.number("factor")
    if not 1 <= factor < math.inf:
        fields.fail(f"rope factor {factor}", "expected a factor of at least 1")
    if kind == "linear":
        return RopeConfig(kind="linear", theta=theta, factor=factor)
    trained = "original_max_position_embeddings"
    original = rope.integer(trained, None) or fields.integer(trained, None) or fields.integer("max_position_embeddings")
    if kind == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if not 0 < low < high:
            fields.fail(f"rope low_freq_factor {low}, high_freq_factor {high}", "expected 0 < low < high")
        return RopeConfig(
            kind="llama3", theta=theta, factor=factor, original_max_position_embeddings=original,
            low_freq_factor=low, high_freq_factor=high,
        )  # fmt: skip
    return RopeConfig(
        kind="yarn", theta=theta, factor=factor, original_max_position_embeddings=original,
        beta_fast=rope.number("beta_fast", 32.0), beta_slow=rope.number("beta_slow", 1.0),
        truncate=rope.flag("truncate", True), attention_factor=_yarn_attention_factor(rope, factor),
    )  # fmt: skip


def _check_known(rope: Fields) -> None:
    """A kind that is supported, with settings that this kind reads."""
    kind, legacy = rope.get("rope_type", rope.get("type", "default")), rope.get("type")
    if not isinstance(kind, str) or kind not in _KEYS:
        rope.fail(f"rope type {kind!r}", f"supported rope types: {', '.join(_KEYS)}")
    if legacy not in (None, kind):
        rope.fail(f"rope type is given twice, as {kind!r} and {legacy!r}", "give it once, as rope_type")
    unknown = rope.keys() - _COMMON - _KEYS[kind]
    if unknown:
        rope.fail(f"unknown rope settings {sorted(unknown)}", f"{kind} takes {sorted(_KEYS[kind] | {'rope_theta'})}")


def _check_agreement(a: Fields, b: Fields) -> None:
    """A setting given in two places must be the same in both."""
    for key in sorted((a.keys() & b.keys()) - {"type"}):
        if a.get(key) != b.get(key):
            a.fail(f"{key} is given twice, as {a.get(key)!r} and {b.get(key)!r}", "give it once")


def _yarn_attention_factor(rope: Fields, factor: float) -> float:
    """What yarn multiplies cosine and sine by, as published: 0.1 ln(factor) + 1 unless the file says otherwise."""
    if rope.get("attention_factor") is not None:
        return rope.number("attention_factor")
    mscale, mscale_all_dim = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)

    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0

    return magnitude(mscale) / magnitude(mscale_all_dim) if mscale and mscale_all_dim else magnitude(1.0)
