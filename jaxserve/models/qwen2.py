"""Qwen2 and Qwen2.5: a bias on queries, keys and values; some layers may have a sliding window."""

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxserve.core.fields import Fields
from jaxserve.models.decoder import Decoder


class Qwen2(Decoder):
    hf_architecture = "Qwen2ForCausalLM"
    hf_model_type = "qwen2"
    hf_defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "max_window_layers": 28,
    }

    def read_config(self, fields: Fields) -> dict[str, Any]:
        return {"qkv_bias": True, "sliding_window": qwen_windows(fields)}


def qwen_windows(fields: Fields) -> tuple[int | None, ...]:
    """Each layer's window. `use_sliding_window` is the master switch; `layer_types` names the layers, and in files
    without it the layers from `max_window_layers` on are the windowed ones."""
    num_layers = fields.integer("num_hidden_layers")
    window = fields.integer("sliding_window", None) if fields.flag("use_sliding_window", False) else None
    types = fields.names("layer_types")
    if types is None:
        first = fields.integer("max_window_layers", num_layers)
        return tuple(window if index >= first else None for index in range(num_layers))
    if len(types) != num_layers or set(types) - {"full_attention", "sliding_attention"}:
        fields.fail(
            f"layer_types is {types!r}", f"expected {num_layers} entries, each 'full_attention' or 'sliding_attention'"
        )
    if window is None and "sliding_attention" in types:
        fields.fail(
            "layer_types has 'sliding_attention' but no window is in use",
            "set use_sliding_window and sliding_window, or make every layer 'full_attention'",
        )
    return tuple(window if kind == "sliding_attention" else None for kind in types)
