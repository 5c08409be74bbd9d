"""A Llama forward pass in plain NumPy, read off a Hugging Face directory: the oracle for what training wrote.

It shares no code with the training script nor with the engine. One row, so B is left out: T tokens, N query heads, K KV
heads, H head dim, D model width, V vocabulary.
"""

import json
from pathlib import Path

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy, for safetensors)
import numpy as np
from safetensors.numpy import load_file

Array = np.ndarray


class HfLlama:
    """`logits(ids)` of the model in `directory`, computed in float32."""

    def __init__(self, directory: Path) -> None:
        self.config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        self.stored = load_file(directory / "model.safetensors")
        self.weights = {name: weight.astype(np.float32) for name, weight in self.stored.items()}

    def logits(self, ids: list[int]) -> Array:  # [T, V]
        x = self.weights["model.embed_tokens.weight"][ids]
        for i in range(self.config["num_hidden_layers"]):
            at = f"model.layers.{i}"
            x = x + self._attention(f"{at}.self_attn", self._norm(f"{at}.input_layernorm", x))
            x = x + self._feed_forward(f"{at}.mlp", self._norm(f"{at}.post_attention_layernorm", x))
        return self._norm("model.norm", x) @ self.weights["model.embed_tokens.weight"].T

    def log_probabilities(self, ids: list[int]) -> Array:  # [T, V]
        logits = self.logits(ids).astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    def _linear(self, name: str, x: Array) -> Array:
        return x @ self.weights[f"{name}.weight"].T

    def _norm(self, name: str, x: Array) -> Array:
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + np.float32(self.config["rms_norm_eps"])) * self.weights[f"{name}.weight"]

    def _feed_forward(self, name: str, x: Array) -> Array:
        gate = self._linear(f"{name}.gate_proj", x)
        return self._linear(f"{name}.down_proj", gate / (1 + np.exp(-gate)) * self._linear(f"{name}.up_proj", x))

    def _attention(self, name: str, x: Array) -> Array:
        c, T = self.config, len(x)
        N, K, H = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        q = self._rotate(self._linear(f"{name}.q_proj", x).reshape(T, N, H))
        k = self._rotate(self._linear(f"{name}.k_proj", x).reshape(T, K, H))
        v = self._linear(f"{name}.v_proj", x).reshape(T, K, H)
        future = np.triu(np.full((T, T), -np.inf, np.float32), 1)
        out = np.empty_like(q)
        for head in range(N):
            shared = head // (N // K)
            scores = q[:, head] @ k[:, shared].T / np.float32(H**0.5) + future
            p = np.exp(scores - scores.max(axis=-1, keepdims=True))
            out[:, head] = p / p.sum(axis=-1, keepdims=True) @ v[:, shared]
        return self._linear(f"{name}.o_proj", out.reshape(T, N * H))

    def _rotate(self, x: Array) -> Array:  # [T, heads, H]
        H = x.shape[-1]
        inverse_frequency = 1.0 / self.config["rope_theta"] ** (np.arange(0, H, 2) / H)
        angles = np.outer(np.arange(len(x)), inverse_frequency)
        angles = np.concatenate([angles, angles], axis=-1)[:, None, :].astype(np.float32)
        rotated_half = np.concatenate([-x[..., H // 2 :], x[..., : H // 2]], axis=-1)
        return x * np.cos(angles) + rotated_half * np.sin(angles)
