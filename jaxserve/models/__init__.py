"""Decoder models in JAX: what they are (`config`), what they compute (`decoder`, `layers`), where weights come from."""

from jaxserve.models.config import ModelConfig, RopeConfig
from jaxserve.models.decoder import Attend, Decoder, Params
from jaxserve.models.hf_params import params_from_hf
from jaxserve.models.params import check_params, random_params
from jaxserve.models.registry import MODELS, model_for
from jaxserve.models.weights import Checkpoint, convert, load

__all__ = [
    "MODELS", "Attend", "Checkpoint", "Decoder", "ModelConfig", "Params", "RopeConfig", "check_params", "convert",
    "load", "model_for", "params_from_hf", "random_params",
]  # fmt: skip
