"""Everything that reads or writes model files: Hugging Face, safetensors, Orbax. `models/` only computes."""

from jaxserve.checkpoints.hf_config import config_from_hf
from jaxserve.checkpoints.hf_params import params_from_hf
from jaxserve.checkpoints.weights import Checkpoint, convert, load

__all__ = ["Checkpoint", "config_from_hf", "convert", "load", "params_from_hf"]
