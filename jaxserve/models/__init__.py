"""Decoder models in JAX: what they are (`config`), what they hold (`leaves`), what they compute (`decoder`)."""

from jaxserve.models.config import ModelConfig, RopeConfig
from jaxserve.models.decoder import Attend, Decoder, Params
from jaxserve.models.leaves import Axes, Leaf
from jaxserve.models.params import check_params, compute_dtype, random_params
from jaxserve.models.registry import MODELS, model_for

__all__ = [
    "MODELS", "Attend", "Axes", "Decoder", "Leaf", "ModelConfig", "Params", "RopeConfig", "check_params",
    "compute_dtype", "model_for", "random_params",
]  # fmt: skip
