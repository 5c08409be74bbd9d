"""The same tokens and log-probabilities as Hugging Face transformers, for every architecture and rope kind."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.checkpoints import Checkpoint, load
from jaxserve.models import model_for
from jaxserve.models.dense_attention import dense_attention

FIXTURES = Path(__file__).parents[1] / "fixtures"
ORACLES = sorted(path.parent.name for path in FIXTURES.glob("*/oracle.json"))
PADDED = 72


@partial(jax.jit, static_argnums=0)
def next_logprobs(config, params, tokens):
    model = model_for(config)
    positions = jnp.arange(PADDED, dtype=jnp.int32)
    hidden = model.forward(params, config, tokens, positions, dense_attention(positions))
    return jax.nn.log_softmax(model.logits(params, config, hidden), axis=-1)


def run(checkpoint: Checkpoint, tokens: list[int]) -> np.ndarray:
    """Log-probabilities of the token after each of `tokens`, [T, V]."""
    padded = np.zeros(PADDED, np.int32)
    padded[: len(tokens)] = tokens
    return np.asarray(next_logprobs(checkpoint.config, checkpoint.params, padded))[: len(tokens)]


@pytest.mark.parametrize("name", ORACLES)
def test_tokens_and_logprobs_are_those_of_transformers(name):
    checkpoint = load(FIXTURES / name, dtype="float32")
    for case in json.loads((FIXTURES / name / "oracle.json").read_text())["cases"]:
        tokens, prompt = case["tokens"], case["prompt_length"]
        table = run(checkpoint, tokens)
        assert table.dtype == np.float32
        assert table[prompt - 1 : -1].argmax(axis=-1).tolist() == tokens[prompt:]
        np.testing.assert_allclose(table[np.arange(len(tokens) - 1), tokens[1:]], case["logprobs"], atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", ["qwen2", "mistral"])
def test_the_oracles_notice_a_forgotten_window(name):
    checkpoint = load(FIXTURES / name, dtype="float32")
    config = checkpoint.config
    assert any(config.sliding_window)
    case = json.loads((FIXTURES / name / "oracle.json").read_text())["cases"][-1]
    blind = Checkpoint(replace(config, sliding_window=()), checkpoint.params, checkpoint.directory)
    found = run(blind, case["tokens"])[np.arange(len(case["tokens"]) - 1), case["tokens"][1:]]
    assert np.abs(found - case["logprobs"]).max() > 0.01
