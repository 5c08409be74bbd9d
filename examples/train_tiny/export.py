"""Writes a trained model as an ordinary Hugging Face directory.

    config.json  generation_config.json  model.safetensors  tokenizer.json  tokenizer_config.json

Weights get Hugging Face's names and its [out, in] orientation (Flax keeps [in, out]) and are stored in bfloat16.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from corpus import ASSISTANT, BOS, END, EOS, SPECIAL_TOKENS, SYSTEM, USER
from flax import nnx
from model import Llama, LlamaConfig
from safetensors.numpy import save_file
from tokenizers import Tokenizer

CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('roles are system, user and assistant, not ' + message['role']) -}}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
assert {SYSTEM, USER, ASSISTANT, END} == {f"<|{role}|>" for role in ("system", "user", "assistant", "end")}


def hf_tensors(model: Llama) -> Iterator[tuple[str, nnx.Param[Any], bool]]:
    """Each weight's Hugging Face name, its parameter, and whether Flax keeps it transposed."""
    yield "model.embed_tokens.weight", model.embed_tokens.embedding, False
    for i, layer in enumerate(model.layers):
        at = f"model.layers.{i}"
        yield f"{at}.input_layernorm.weight", layer.input_layernorm.scale, False
        yield f"{at}.post_attention_layernorm.weight", layer.post_attention_layernorm.scale, False
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"{at}.self_attn.{name}.weight", getattr(layer.self_attn, name).kernel, True
        for name in ("gate_proj", "up_proj", "down_proj"):
            yield f"{at}.mlp.{name}.weight", getattr(layer.mlp, name).kernel, True
    yield "model.norm.weight", model.norm.scale, False


def save_weights(model: Llama, path: Path) -> None:
    tensors: dict[str, np.ndarray] = {}
    for name, param, transposed in hf_tensors(model):
        weight = np.asarray(param[...].astype(jnp.bfloat16))
        tensors[name] = np.ascontiguousarray(weight.T if transposed else weight)
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # save_file leaves it readable by its owner only


def round_weights(model: Llama) -> None:
    """Rounds the weights in place to what `save_weights` stores, so that a loss is that of the stored model."""
    for _, param, _ in hf_tensors(model):
        param[...] = param[...].astype(jnp.bfloat16).astype(jnp.float32)


def save_config(config: LlamaConfig, tokenizer: Tokenizer, directory: Path) -> None:
    bos, eos, end = (tokenizer.token_to_id(token) for token in (BOS, EOS, END))
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **dataclasses.asdict(config),
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "hidden_act": "silu",
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": eos,
    }
    _write_json(directory / "config.json", fields)
    sampling = {"do_sample": True, "temperature": 0.8, "top_p": 0.95}
    ids = {"bos_token_id": bos, "eos_token_id": [eos, end], "pad_token_id": eos}
    _write_json(directory / "generation_config.json", {**ids, **sampling})


def save_tokenizer(tokenizer: Tokenizer, max_length: int, directory: Path) -> None:
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    fields = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {"content": token, **special} for token in SPECIAL_TOKENS
        },
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(directory / "tokenizer_config.json", fields)


def save_directory(model: Llama, tokenizer: Tokenizer, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    save_weights(model, directory / "model.safetensors")
    save_config(model.config, tokenizer, directory)
    save_tokenizer(tokenizer, model.config.max_position_embeddings, directory)


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
