"""Hugging Face `config.json` -> ModelConfig.

Every value that changes the arithmetic is either understood or refused: a model that runs with a setting dropped
writes plausible nonsense, which is worse than an error. Keys that change nothing at inference are ignored.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxserve.checkpoints.hf_rope import read_rope
from jaxserve.core.errors import CheckpointError, ConfigError, UnsupportedArchitecture
from jaxserve.core.fields import Fields, read_json
from jaxserve.models import registry
from jaxserve.models.config import ModelConfig
from jaxserve.models.decoder import Decoder


def config_from_hf(mapping: Mapping[str, Any], path: object = "config.json") -> ModelConfig:
    """Read the contents of a Hugging Face `config.json`; `path` is what errors name.

    Raises:
      UnsupportedArchitecture, or CheckpointError for anything missing, conflicting or not supported.
    """
    model = _architecture(Fields(mapping, path))
    fields = Fields({**model.hf_defaults, **mapping}, path)
    _refuse(fields)
    model.check_config(fields)
    num_layers, num_heads = fields.integer("num_hidden_layers"), fields.integer("num_attention_heads")
    hidden_size = fields.integer("hidden_size")
    head_dim = fields.integer("head_dim", None)
    if head_dim is None:
        if hidden_size % num_heads:
            fields.fail(
                f"hidden_size {hidden_size} is not a multiple of num_attention_heads {num_heads}",
                "give head_dim where it is not hidden_size / num_attention_heads",
            )
        head_dim = hidden_size // num_heads
    found: dict[str, Any] = {
        "architecture": model.hf_architecture,
        "vocab_size": fields.integer("vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": fields.integer("intermediate_size"),
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": fields.integer("num_key_value_heads", num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": fields.integer("max_position_embeddings"),
        "rms_norm_eps": fields.number("rms_norm_eps", 1e-6),
        "rope": read_rope(fields),
        "tie_word_embeddings": fields.flag("tie_word_embeddings", False),
        "eos_token_ids": fields.token_ids("eos_token_id"),
        "bos_token_id": next(iter(fields.token_ids("bos_token_id")), None),
    }
    try:
        return ModelConfig(**found | model.read_config(fields))
    except ConfigError as error:
        raise CheckpointError(path, str(error), "the sizes must fit together") from error


def config_from_directory(directory: Path) -> ModelConfig:
    """`config.json`, and the end-of-sequence ids that `generation_config.json` adds."""
    config = config_from_hf(read_json(directory / "config.json"), directory / "config.json")
    generation = directory / "generation_config.json"
    if not generation.is_file():
        return config
    more = Fields(read_json(generation), generation).token_ids("eos_token_id")
    return replace(config, eos_token_ids=tuple(dict.fromkeys(config.eos_token_ids + more)))


def _architecture(fields: Fields) -> Decoder:
    """The model class; `architectures` decides, `model_type` must agree, and serves alone where it is all there is."""
    named = fields.get("architectures") or []
    model_type = fields.get("model_type")
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        fields.fail(f"architectures is {named!r}", "a list of class names")
    if not named:
        by_type = {model.hf_model_type: model for model in registry.MODELS.values()}
        if model_type not in by_type:
            raise UnsupportedArchitecture(fields.path, str(model_type), registry.MODELS)
        return by_type[model_type]
    known = [name for name in named if name in registry.MODELS]
    if not known:
        raise UnsupportedArchitecture(fields.path, ", ".join(named), registry.MODELS)
    model = registry.MODELS[known[0]]
    if model_type not in (None, model.hf_model_type):
        fields.fail(
            f"architectures {named} and model_type {model_type!r} contradict each other",
            f"{known[0]} goes with model_type {model.hf_model_type!r}",
        )
    return model


def _refuse(fields: Fields) -> None:
    """What would change the arithmetic and no model here supports."""
    if isinstance(fields.get("text_config"), Mapping):
        fields.fail("text_config, that of a model with more than text", "supported: models of text alone")
    quantization = fields.get("quantization_config") or fields.get("compression_config")
    if quantization:
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, Mapping) else quantization
        fields.fail(
            f"a quantized checkpoint (quantization_config, method {method!r})",
            "supported: unquantized float32, bfloat16 and float16 weights",
        )
