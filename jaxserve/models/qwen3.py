"""Qwen3 (dense): queries and keys are normalised head by head before they are rotated."""

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxserve.core.fields import Fields
from jaxserve.models.decoder import Decoder
from jaxserve.models.qwen2 import Qwen2, qwen_windows


class Qwen3(Decoder):
    hf_architecture = "Qwen3ForCausalLM"
    hf_model_type = "qwen3"
    hf_defaults: ClassVar[Mapping[str, Any]] = {**Qwen2.hf_defaults, "head_dim": 128}

    def read_config(self, fields: Fields) -> dict[str, Any]:
        bias = fields.flag("attention_bias", False)
        return {"qkv_bias": bias, "output_bias": bias, "qk_norm": True, "sliding_window": qwen_windows(fields)}
