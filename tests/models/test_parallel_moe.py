"""An architecture of one file and one line, from its checkpoint to the engine's tokens."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxserve.checkpoints import load
from jaxserve.core.errors import CheckpointError, ConfigError
from jaxserve.core.sampling import SamplingParams
from jaxserve.llm import LLM
from jaxserve.models import MODELS, ModelConfig, model_for, random_params
from jaxserve.models.dense_attention import dense_attention
from tests.models.parallel_moe import Experts, ParallelMoe
from tests.models.suite import ModelSuite, stored_tensors

HF_CONFIG = {
    "architectures": ["ParallelMoeForCausalLM"], "model_type": "parallel_moe", "vocab_size": 64, "hidden_size": 32,
    "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 96, "layer_norm_epsilon": 1e-3, "hidden_act": "gelu", "num_experts": 3,
}  # fmt: skip
LIMITS = {
    "max_num_seqs": 4, "num_blocks": 32, "block_size": 8, "decode_buckets": (4,), "mixed_decode_buckets": (4,),
    "prefill_rows": 4, "progress": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "ParallelMoeForCausalLM", ParallelMoe())


class TestParallelMoe(ModelSuite):
    hf_config: ClassVar[dict[str, Any]] = HF_CONFIG


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    """A checkpoint by its own names, every bias and norm random too."""
    rng = np.random.default_rng(4)
    width, inner = 32, 40
    shapes = {"transformer.wte.weight": (64, width), "transformer.wpe.weight": (96, width)}
    shapes |= {f"transformer.ln_f.{kind}": (width,) for kind in ("weight", "bias")}
    for i in range(2):
        layer = f"transformer.h.{i}."
        shapes |= {layer + "ln.weight": (width,), layer + "ln.bias": (width,), layer + "mlp.router.weight": (3, width)}
        shapes |= {layer + "attn.qkv.weight": (64, width), layer + "attn.qkv.bias": (64,)}
        shapes |= {layer + "attn.dense.weight": (width, width)}
        for expert in (f"{layer}mlp.experts.{e}." for e in range(3)):
            shapes |= {expert + "up.weight": (inner, width), expert + "up.bias": (inner,)}
            shapes |= {expert + "down.weight": (width, inner), expert + "down.bias": (width,)}
    return {
        name: (rng.standard_normal(shape) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.3)).astype(np.float32)
        for name, shape in shapes.items()
    }


@pytest.fixture
def folder(tmp_path: Path, tensors: dict[str, np.ndarray]) -> Path:
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(HF_CONFIG))
    return tmp_path


def test_its_file_says_what_the_checkpoint_holds(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    checkpoint = load(folder, dtype="float32")
    assert checkpoint.config.extra == Experts(3) and checkpoint.config.rms_norm_eps == 1e-3
    found = stored_tensors(checkpoint.params, ParallelMoe().leaves(checkpoint.config))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)


def test_its_own_refusals(folder: Path) -> None:
    for change, says in (
        ({"hidden_act": "silu"}, "hidden_act 'silu'; supported: 'gelu'"),
        ({"num_experts": None}, "num_experts is missing"),
        ({"num_experts": 2}, "unexpected tensor transformer.h.0.mlp.experts.2.down.bias"),
    ):
        (folder / "config.json").write_text(json.dumps(HF_CONFIG | change))
        with pytest.raises(CheckpointError, match=says):
            load(folder)


def test_forward_is_what_the_definition_gives(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    checkpoint, tokens = load(folder, dtype="float32"), np.arange(20, dtype=np.int32) * 7 % 64
    model, positions = model_for(checkpoint.config), np.arange(20, dtype=np.int32)
    hidden = model.forward(checkpoint.params, checkpoint.config, tokens, positions, dense_attention(positions))
    logits = model.logits(checkpoint.params, checkpoint.config, hidden)
    expected, experts = oracle(tensors, tokens)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert experts == {0, 1, 2}


@pytest.mark.slow
@pytest.mark.parametrize("step", [64, 16], ids=["whole", "chunked"])
def test_the_engine_serves_it(folder: Path, tensors: dict[str, np.ndarray], step: int, compilation_cache: str) -> None:
    """Greedy tokens are the oracle's, whether a prompt is prefilled whole or in chunks."""
    checkpoint = load(folder, dtype="float32")
    llm = LLM(
        params=checkpoint.params, model_config=checkpoint.config, max_num_batched_tokens=step, prefill_buckets=(step,),
        compilation_cache_dir=compilation_cache, **LIMITS,
    )  # fmt: skip
    prompts = [[(7 * i + 3) % 64 for i in range(41)], [5, 9, 1]]
    greedy = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    for prompt, output in zip(prompts, llm.generate(prompts, greedy), strict=True):
        tokens = list(output.outputs[0].token_ids)
        logits, _ = oracle(tensors, np.array(prompt + tokens[:-1]))
        assert tokens == logits[len(prompt) - 1 :].argmax(axis=-1).tolist()


def oracle(tensors: Mapping[str, np.ndarray], tokens: np.ndarray) -> tuple[np.ndarray, set[int]]:
    """Logits [T, V] of one sequence by the definition, in float64, and the experts that were taken."""
    t = {name.removeprefix("transformer."): tensor.astype(np.float64) for name, tensor in tensors.items()}
    x, taken = t["wte.weight"][tokens] + t["wpe.weight"][: len(tokens)], set[int]()
    for i in range(2):
        layer = {name.removeprefix(f"h.{i}."): tensor for name, tensor in t.items() if name.startswith(f"h.{i}.")}
        normal = layer_norm(x, layer["ln.weight"], layer["ln.bias"])
        moe = list(experts_of(layer, normal))
        taken |= {expert for expert, _ in moe}
        x = x + attention(layer, normal) + np.stack([out for _, out in moe])
    return layer_norm(x, t["ln_f.weight"], t["ln_f.bias"]) @ t["wte.weight"].T, taken


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3) * weight + bias


def attention(layer: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Two KV heads, each stored as two queries, its key and its value, of eight dimensions."""
    heads = (x @ layer["attn.qkv.weight"].T + layer["attn.qkv.bias"]).reshape(len(x), 2, 4, 8)
    seen, out = np.tri(len(x), dtype=bool), []
    for kv in range(2):
        for query in range(2):
            scores = np.where(seen, heads[:, kv, query] @ heads[:, kv, 2].T / math.sqrt(8), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out.append(weights / weights.sum(-1, keepdims=True) @ heads[:, kv, 3])
    return np.concatenate(out, axis=-1) @ layer["attn.dense.weight"].T


def experts_of(layer: Mapping[str, np.ndarray], x: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each token's expert and what it gives, times its probability."""
    for token in x:
        chances = np.exp(layer["mlp.router.weight"] @ token)
        best = int(chances.argmax())
        of = f"mlp.experts.{best}."
        inner = layer[of + "up.weight"] @ token + layer[of + "up.bias"]
        gelu = np.array([0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in inner])
        yield best, (layer[of + "down.weight"] @ gelu + layer[of + "down.bias"]) * (chances[best] / chances.sum())


def test_extra_must_be_a_value() -> None:
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_layers": 1, "num_heads": 1}
    sizes |= {"num_kv_heads": 1, "head_dim": 8, "max_position_embeddings": 8}
    with pytest.raises(ConfigError, match=r"extra = \{'count': 3\} cannot be hashed: give a frozen dataclass"):
        ModelConfig(architecture="ParallelMoeForCausalLM", extra={"count": 3}, **sizes)
    config = ModelConfig(architecture="ParallelMoeForCausalLM", extra=Experts(3), tie_word_embeddings=True, **sizes)
    assert random_params(config, 0, jnp.float32)["layers"][0]["w_up"].shape == (3, 8, 8)
