"""Mistral 7B and its like: Llama with a sliding window on every layer (none since version 0.2)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxserve.core.fields import Fields
from jaxserve.models.decoder import Decoder


class Mistral(Decoder):
    hf_architecture = "MistralForCausalLM"
    hf_model_type = "mistral"
    hf_defaults: ClassVar[Mapping[str, Any]] = {"num_key_value_heads": 8, "sliding_window": 4096}

    def read_config(self, fields: Fields) -> dict[str, Any]:
        types = fields.names("layer_types")
        window = fields.integer("sliding_window", None)
        uniform = "full_attention" if window is None else "sliding_attention"
        if types is not None and set(types) != {uniform}:
            fields.fail(f"layer_types is {types!r}", f"supported: {uniform!r} on every layer")
        return {"sliding_window": (window,) * fields.integer("num_hidden_layers")}
