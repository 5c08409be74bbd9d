"""The supported architectures, by the class name that a `config.json` gives. Adding one takes a file and a line."""

from jaxserve.core.errors import UnsupportedArchitecture
from jaxserve.models.config import ModelConfig
from jaxserve.models.decoder import Decoder
from jaxserve.models.llama import Llama
from jaxserve.models.mistral import Mistral
from jaxserve.models.qwen2 import Qwen2
from jaxserve.models.qwen3 import Qwen3

MODELS: dict[str, Decoder] = {
    "LlamaForCausalLM": Llama(),
    "MistralForCausalLM": Mistral(),
    "Qwen2ForCausalLM": Qwen2(),
    "Qwen3ForCausalLM": Qwen3(),
}


def model_for(config: ModelConfig) -> Decoder:
    """The model that runs `config`; UnsupportedArchitecture if there is none."""
    if config.architecture not in MODELS:
        raise UnsupportedArchitecture("ModelConfig", config.architecture, MODELS)
    return MODELS[config.architecture]
