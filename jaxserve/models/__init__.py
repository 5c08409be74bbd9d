"""Decoder models in JAX: what they are (`config`) and what they compute (`decoder`, `layers`)."""

from jaxserve.models.config import ModelConfig, RopeConfig
from jaxserve.models.decoder import Attend, Decoder, Params
from jaxserve.models.params import check_params, random_params
from jaxserve.models.registry import MODELS, model_for

__all__ = [
    "MODELS", "Attend", "Decoder", "ModelConfig", "Params", "RopeConfig", "check_params", "model_for", "random_params",
]  # fmt: skip
