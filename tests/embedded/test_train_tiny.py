"""What the training example writes is what it trained: same logits, through Hugging Face's names and conventions."""

import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from tests.embedded.hf_forward import HfLlama

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_tiny"
PLAY = """ROMEO:
Is the day so young?

BENVOLIO:
But new struck nine.

ROMEO:
Ay me! sad hours seem long.

ANTONIO:
Noble Sebastian,
Thou let'st thy fortune sleep.

SEBASTIAN:
Thou dost snore distinctly.

ANTONIO:
I am more serious than my custom."""


@pytest.fixture(scope="module")
def example() -> SimpleNamespace:
    """The example's modules; its folder is on the path only while they are imported."""
    sys.path.insert(0, str(EXAMPLE))
    try:
        import corpus
        import export
        import model

        return SimpleNamespace(corpus=corpus, export=export, model=model)
    finally:
        sys.path.remove(str(EXAMPLE))


@pytest.fixture
def scenes(example: SimpleNamespace, tmp_path: Path) -> list[list[object]]:
    path = tmp_path / "play.txt"
    path.write_text(PLAY, encoding="utf-8")
    return example.corpus.read_scenes(path)


@pytest.mark.slow
def test_written_directory_gives_the_trained_logits(example: SimpleNamespace, tmp_path: Path) -> None:
    config = example.model.LlamaConfig(
        vocab_size=300, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6, head_dim=8
    )
    model = example.model.Llama(config, rngs=nnx.Rngs(3))
    for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param)):  # large enough for every part to count
        param[...] = param[...] + 0.3 * jax.random.normal(jax.random.key(len(str(path))), param.shape)
    example.export.round_weights(model)
    tokenizer = example.corpus.train_tokenizer([PLAY], config.vocab_size)
    example.export.save_directory(model, tokenizer, tmp_path)
    ids = np.random.default_rng(0).integers(config.vocab_size, size=37)
    trained = np.asarray(jax.jit(model)(ids[None]))[0]
    assert trained.std() > 0.5
    np.testing.assert_allclose(HfLlama(tmp_path).logits(ids.tolist()), trained, rtol=2e-4, atol=2e-4)


def test_scenes_change_where_the_cast_does(scenes: list[list[object]]) -> None:
    assert [str(scene[0]) for scene in scenes] == [
        "ROMEO:\nIs the day so young?",
        "ANTONIO:\nNoble Sebastian,\nThou let'st thy fortune sleep.",
    ]
    assert [len(scene) for scene in scenes] == [3, 3]


def test_rows_hold_scenes_and_chats(example: SimpleNamespace, scenes: list[list[object]]) -> None:
    tokenizer = example.corpus.train_tokenizer([PLAY], 400)
    corpus = example.corpus.Corpus(scenes, tokenizer)
    text = tokenizer.decode(corpus.tokens.tolist(), skip_special_tokens=False)
    assert text == f"{PLAY}<|endoftext|><|startoftext|>".replace(
        "long.\n\nANTONIO", "long.<|endoftext|><|startoftext|>ANTONIO"
    )
    chats = [tokenizer.decode(chat.tolist(), skip_special_tokens=False) for chat in corpus.chats]
    assert (
        "<|startoftext|><|system|>You are ROMEO, and you speak with BENVOLIO.<|end|>"
        "<|user|>But new struck nine.<|end|><|assistant|>Ay me! sad hours seem long.<|end|><|endoftext|>"
    ) in chats
    rows = corpus.batch(np.random.default_rng(0), 6, 16, chat_share=0.5)
    assert rows.shape == (6, 16)
    assert (rows[:, 0] == corpus.bos).all()
    heldout = corpus.heldout_rows(16)
    assert heldout[:, 1:].reshape(-1)[: len(corpus.tokens)].tolist() == corpus.tokens.tolist()
    assert (heldout[:, 1:].reshape(-1)[len(corpus.tokens) :] == -1).all()
