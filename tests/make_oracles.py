"""Make the oracle fixtures: tiny seeded checkpoints and what Hugging Face transformers makes of them.

    pip install torch transformers && python tests/make_oracles.py

For each architecture a checkpoint goes to tests/fixtures/NAME, in float32 safetensors, with `oracle.json` beside it: a
few prompts, the greedy continuation of each, and the log-probability of every token but the first of prompt and
continuation together, by one float32 forward pass. Tests compare with these, and so need no PyTorch.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

FIXTURES = Path(__file__).parent / "fixtures"
NEW_TOKENS = 24
PROMPTS = ([1, 17, 42], [1, *range(5, 90, 7)], [1, *(i * i % 96 for i in range(2, 42))])
SIZES = dict(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=128, bos_token_id=1, eos_token_id=2, initializer_range=0.3,
)  # fmt: skip
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = dict(factor=4.0, original_max_position_embeddings=32)

ORACLES: dict[str, dict[str, Any]] = {
    "llama2": dict(kind="Llama", num_key_value_heads=4),
    "llama2-linear": dict(
        kind="Llama", num_key_value_heads=4, rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=10_000.0)
    ),
    "llama3.1": dict(
        kind="Llama", num_key_value_heads=2, head_dim=16,
        rope_parameters=dict(LLAMA3, rope_type="llama3", rope_theta=5e5),
    ),
    "llama3.2": dict(
        kind="Llama", num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=[2, 3],
        rope_parameters=dict(LLAMA3, rope_type="llama3", rope_theta=5e5),
    ),
    "llama-yarn": dict(
        kind="Llama", num_key_value_heads=2, attention_bias=True,
        rope_parameters=dict(YARN, rope_type="yarn", rope_theta=10_000.0),
    ),
    "qwen2": dict(
        kind="Qwen2", num_key_value_heads=2, tie_word_embeddings=True, use_sliding_window=True, sliding_window=8,
        max_window_layers=1, rope_parameters=dict(rope_type="default", rope_theta=1e6),
    ),
    "qwen3": dict(
        kind="Qwen3", num_key_value_heads=1, head_dim=16, rope_parameters=dict(rope_type="default", rope_theta=1e6)
    ),
    "mistral": dict(
        kind="Mistral", num_key_value_heads=2, sliding_window=16,
        rope_parameters=dict(rope_type="default", rope_theta=10_000.0),
    ),
}  # fmt: skip
OLD_SPELLING = ("llama2", "llama3.2", "qwen2", "mistral")
"""Saved as transformers 4 did: `rope_theta` and `rope_scaling` in the place of `rope_parameters`."""


def main() -> None:
    transformers.logging.set_verbosity_error()
    for seed, (name, settings) in enumerate(ORACLES.items()):
        directory = FIXTURES / name
        shutil.rmtree(directory, ignore_errors=True)
        model = build(seed, **settings)
        model.save_pretrained(directory)
        (directory / "generation_config.json").unlink(missing_ok=True)
        if name in OLD_SPELLING:
            respell(directory / "config.json")
        oracle = {"made_with": f"transformers {transformers.__version__}", "cases": [run(model, p) for p in PROMPTS]}
        (directory / "oracle.json").write_text(json.dumps(oracle) + "\n")
        size = sum(path.stat().st_size for path in directory.iterdir())
        print(f"{name}: {size / 1000:.0f} kB, first continuation {oracle['cases'][0]['tokens'][len(PROMPTS[0]) :]}")


def build(seed: int, kind: str, **settings: Any) -> torch.nn.Module:
    """A model with random weights; biases and norms are made random too, so that a forgotten one is noticed."""
    torch.manual_seed(seed)
    config = getattr(transformers, kind + "Config")(**{**SIZES, **settings})
    model = getattr(transformers, kind + "ForCausalLM")._from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


@torch.no_grad()
def run(model: torch.nn.Module, prompt: list[int]) -> dict[str, Any]:
    """Greedy continuation without a cache, and the log-probabilities of the whole sequence."""
    tokens = list(prompt)
    for _ in range(NEW_TOKENS):
        tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    table = torch.log_softmax(model(torch.tensor([tokens]), use_cache=False).logits[0].float(), dim=-1)
    logprobs = [round(float(table[i, token]), 6) for i, token in enumerate(tokens[1:])]
    return {"prompt_length": len(prompt), "tokens": tokens, "logprobs": logprobs}


def respell(path: Path) -> None:
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
