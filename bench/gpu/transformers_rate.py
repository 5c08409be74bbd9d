"""transformers' continuous batching on weights of ours: what part 4 stands beside. Needs torch and transformers."""

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen3Config

if TYPE_CHECKING:  # so that it also runs where torch is and JAX is not
    from jaxserve.models.config import ModelConfig


def measure(
    config: "ModelConfig", params: Any, requests: list[tuple[list[int], int]], *, on_gpu: bool
) -> dict[str, Any]:
    """Output tokens a second of `generate_batch`, every request with its own number of output tokens."""
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    model = AutoModelForCausalLM.from_config(_hf_config(config), attn_implementation="sdpa").to(device, dtype).eval()
    state = {name: torch.from_numpy(np.ascontiguousarray(leaf)).to(device, dtype) for name, leaf in _hf(config, params)}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or any("lm_head" not in name for name in missing):
        raise RuntimeError(f"the weights do not fit: missing {missing}, unexpected {unexpected}")
    longest = max(output for _, output in requests)
    generation = GenerationConfig(max_new_tokens=longest, do_sample=False, eos_token_id=-1, pad_token_id=0)
    manager = model.init_continuous_batching(generation_config=generation)
    manager.start()
    begin = time.perf_counter()
    for prompt, output in requests:
        manager.add_request(input_ids=prompt, max_new_tokens=output)
    done = tokens = 0
    while done < len(requests):
        result = manager.get_result(timeout=60)
        if result is None:
            raise RuntimeError(f"no result for a minute, after {done} of {len(requests)}")
        if result.is_finished():
            done, tokens = done + 1, tokens + len(result.generated_tokens)
    took = time.perf_counter() - begin
    manager.stop(block=True)
    return {"s": took, "output_tokens": tokens, "output_tokens_per_s": tokens / took, "torch": torch.__version__}


def _hf_config(config: "ModelConfig") -> Qwen3Config:
    return Qwen3Config(
        vocab_size=config.vocab_size, hidden_size=config.hidden_size, intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads, head_dim=config.head_dim, rms_norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.max_position_embeddings, tie_word_embeddings=config.tie_word_embeddings,
    )  # fmt: skip


def _hf(config: "ModelConfig", params: Any):
    """Our pytree under transformers' names: fused matrices apart, [out, in]."""
    width = config.hidden_size
    yield "model.embed_tokens.weight", params["embed"]
    yield "model.norm.weight", params["norm"]
    for i, layer in enumerate(params["layers"]):
        at = f"model.layers.{i}."
        qkv = layer["wqkv"]  # [D, K, G + 2, H]
        for name, part in (("q", qkv[:, :, :-2]), ("k", qkv[:, :, -2]), ("v", qkv[:, :, -1])):
            yield f"{at}self_attn.{name}_proj.weight", part.reshape(width, -1).T
        yield f"{at}self_attn.o_proj.weight", layer["wo"].reshape(-1, width).T
        for name, part in (("gate", layer["w_gate_up"][:, 0]), ("up", layer["w_gate_up"][:, 1])):
            yield f"{at}mlp.{name}_proj.weight", part.T
        yield f"{at}mlp.down_proj.weight", layer["w_down"].T
        yield f"{at}input_layernorm.weight", layer["attn_norm"]
        yield f"{at}post_attention_layernorm.weight", layer["mlp_norm"]
        for name in ("q_norm", "k_norm"):
            if name in layer:
                yield f"{at}self_attn.{name}.weight", layer[name]
