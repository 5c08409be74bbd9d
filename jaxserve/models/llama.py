"""Llama 2, 3, 3.1, 3.2 and 3.3."""

from typing import Any

from jaxserve.core.fields import Fields
from jaxserve.models.decoder import Decoder


class Llama(Decoder):
    hf_architecture = "LlamaForCausalLM"
    hf_model_type = "llama"

    def read_config(self, fields: Fields) -> dict[str, Any]:
        bias = fields.flag("attention_bias", False)
        return {"qkv_bias": bias, "output_bias": bias}
