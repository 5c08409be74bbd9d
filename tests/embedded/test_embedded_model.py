"""The model that ships in the package: it is small, whole, loads by Hugging Face's conventions, and has learnt."""

import json
import math
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jinja2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

import jaxserve
from jaxserve.checkpoints import load
from jaxserve.models import model_for
from jaxserve.models.dense_attention import dense_attention
from tests.embedded.hf_forward import HfLlama

NextLogits = Callable[[list[int]], np.ndarray]  # token ids -> logits after each, [T, V]

PADDED = 112
DIRECTORY = Path(jaxserve.__file__).parent / "embedded"

# From the last twentieth of the text, which neither the weights nor the tokenizer were trained on.
UNSEEN = """VINCENTIO:
But is it true? or else is it your pleasure,
Like pleasant travellers, to break a jest
Upon the company you overtake?

HORTENSIO:
I do assure thee, father, so it is.

PETRUCHIO:
Come, go along, and see the truth hereof;
For our first merriment hath made thee jealous.

HORTENSIO:
Well, Petruchio, this has put me in heart.
Have to my widow! and if she be froward,
Then hast thou taught Hortensio to be untoward."""

BEFORE = """BIONDELLO:
Softly and swiftly, sir; for the priest is ready.

LUCENTIO:
I fly, Biondello: but they may chance to need thee
at home; therefore leave us.

BIONDELLO:
Nay, faith, I'll see the church o' your back; and
then come back to my master's as soon as I can.

GREMIO:
I marvel Cambio comes not all this while.

"""


@pytest.fixture(scope="session")
def model() -> HfLlama:
    return HfLlama(DIRECTORY)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DIRECTORY / "tokenizer.json"))


def read_json(name: str) -> dict[str, Any]:
    return json.loads((DIRECTORY / name).read_text(encoding="utf-8"))


def nats_per_token(model: HfLlama, ids: list[int]) -> float:
    return -float(np.mean(model.log_probabilities(ids[:-1])[np.arange(len(ids) - 1), ids[1:]]))


@pytest.fixture(scope="session")
def next_logits() -> NextLogits:
    """The package's own forward pass over up to PADDED tokens, as one compiled program."""
    checkpoint = load(DIRECTORY, dtype="float32")
    family = model_for(checkpoint.config)

    @jax.jit
    def logits(params: Any, tokens: jax.Array) -> jax.Array:
        positions = jnp.arange(PADDED, dtype=jnp.int32)
        hidden = family.forward(params, checkpoint.config, tokens, positions, dense_attention(positions))
        return family.logits(params, checkpoint.config, hidden)

    def run(ids: list[int]) -> np.ndarray:
        padded = np.zeros(PADDED, np.int32)
        padded[: len(ids)] = ids
        return np.asarray(logits(checkpoint.params, padded))[: len(ids)]

    return run


def sampled(next_logits: NextLogits, tokenizer: Tokenizer, ids: list[int], stop: str, seed: int) -> list[int]:
    """New tokens at temperature 0.8, up to and including `stop`, or as many as fit."""
    rng, new = np.random.default_rng(seed), list[int]()
    while len(ids) + len(new) < PADDED:
        logits = next_logits(ids + new)[-1] / 0.8
        new.append(int(np.argmax(logits + rng.gumbel(size=logits.shape))))
        if new[-1] == tokenizer.token_to_id(stop):
            break
    return new


def test_directory_is_complete_and_small() -> None:
    sizes = {path.name: path.stat().st_size for path in DIRECTORY.iterdir() if path.is_file()}
    needed = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert needed <= set(sizes)
    assert sum(sizes.values()) <= 8_000_000


def test_tensors_have_hugging_face_names_and_shapes(model: HfLlama) -> None:
    c = model.config
    D, F, V, H = c["hidden_size"], c["intermediate_size"], c["vocab_size"], c["head_dim"]
    q_width, kv_width = c["num_attention_heads"] * H, c["num_key_value_heads"] * H
    assert c["num_key_value_heads"] < c["num_attention_heads"]
    expected = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}"
        expected |= {f"{at}.{name}.weight": (D,) for name in ("input_layernorm", "post_attention_layernorm")}
        expected |= {f"{at}.self_attn.{name}_proj.weight": (kv_width, D) for name in "kv"}
        expected |= {f"{at}.self_attn.q_proj.weight": (q_width, D), f"{at}.self_attn.o_proj.weight": (D, q_width)}
        expected |= {f"{at}.mlp.{name}_proj.weight": (F, D) for name in ("gate", "up")}
        expected |= {f"{at}.mlp.down_proj.weight": (D, F)}
    assert {name: weight.shape for name, weight in model.stored.items()} == expected
    assert {str(weight.dtype) for weight in model.stored.values()} == {c["torch_dtype"]}
    assert 2e6 <= sum(weight.size for weight in model.stored.values()) <= 4e6


def test_unseen_text_is_predicted_far_better_than_by_noise(model: HfLlama, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(UNSEEN).ids
    shuffled = [ids[0], *np.random.default_rng(0).permutation(ids[1:]).tolist()]
    loss = nats_per_token(model, ids)
    assert loss < 4.2 < math.log(model.config["vocab_size"]) - 3
    assert nats_per_token(model, shuffled) > loss + 2


def test_context_reaches_to_the_last_position(model: HfLlama, tokenizer: Tokenizer) -> None:
    """Unseen text is predicted as well at the far end of the context as near its start: all positions were trained."""
    length = model.config["max_position_embeddings"]
    ids = tokenizer.encode(UNSEEN).ids
    before = tokenizer.encode(BEFORE * (length // 80)).ids[: length - len(ids) + 1]
    row = [*before, *ids[1:]]
    assert len(row) == length
    far = -model.log_probabilities(row[:-1])[np.arange(-len(ids) + 1, 0), ids[1:]]
    assert np.mean(far) < nats_per_token(model, ids) + 0.3


def test_package_reads_the_directory_as_hugging_face_does(
    model: HfLlama, next_logits: NextLogits, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode(UNSEEN).ids[:PADDED]
    np.testing.assert_allclose(next_logits(ids), model.logits(ids), rtol=1e-4, atol=1e-3)


def test_sampled_scene_is_written_like_a_play(next_logits: NextLogits, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ROMEO:\n").ids
    text = tokenizer.decode(sampled(next_logits, tokenizer, ids, "<|endoftext|>", seed=1))
    words = [word.strip(string.punctuation).lower() for word in text.split()]
    common = {
        "the",
        "and",
        "to",
        "i",
        "of",
        "my",
        "a",
        "you",
        "that",
        "in",
        "is",
        "not",
        "with",
        "me",
        "it",
        "be",
        "for",
    }
    assert sum(word in common for word in words) >= 0.15 * len(words)
    assert 2.5 < np.mean([len(word) for word in words]) < 6
    names = [speech.split("\n")[0] for speech in text.split("\n\n")[1:-1]]
    assert names
    assert all(re.fullmatch(r"[A-Z][A-Za-z ]+:", name) for name in names)


def test_chat_answers_and_stops(next_logits: NextLogits, tokenizer: Tokenizer) -> None:
    prompt = chat([{"role": "user", "content": "Good morrow, what news from Rome?"}], add_generation_prompt=True)
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    answers = [sampled(next_logits, tokenizer, ids, "<|end|>", seed=seed) for seed in range(3)]
    assert any(answer[-1] == tokenizer.token_to_id("<|end|>") and len(answer) > 3 for answer in answers)
    assert all("|>" not in tokenizer.decode(answer[:-1], skip_special_tokens=False) for answer in answers)


def chat(messages: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
    def raise_exception(message: str) -> None:
        raise ValueError(message)

    fields = read_json("tokenizer_config.json")
    template = jinja2.Environment().from_string(fields["chat_template"])
    return template.render(
        messages=messages,
        add_generation_prompt=add_generation_prompt,
        bos_token=fields["bos_token"],
        raise_exception=raise_exception,
    )


def test_chat_template() -> None:
    messages = [{"role": "system", "content": "You are ROMEO."}, {"role": "user", "content": " Who goes there?\n"}]
    start = "<|startoftext|><|system|>You are ROMEO.<|end|><|user|>Who goes there?<|end|>"
    assert chat(messages) == start
    assert chat(messages, add_generation_prompt=True) == f"{start}<|assistant|>"
    answer = {"role": "assistant", "content": "A friend."}
    assert chat([*messages, answer]) == f"{start}<|assistant|>A friend.<|end|>"
    with pytest.raises(ValueError, match="roles are system, user and assistant, not tool"):
        chat([{"role": "tool", "content": "4"}])


def test_special_tokens_are_single_and_named_in_the_configs(tokenizer: Tokenizer) -> None:
    config, generation, fields = (
        read_json(name) for name in ("config.json", "generation_config.json", "tokenizer_config.json")
    )
    bos, eos, end = (tokenizer.token_to_id(token) for token in (fields["bos_token"], fields["eos_token"], "<|end|>"))
    assert (config["bos_token_id"], config["eos_token_id"]) == (bos, eos)
    assert generation["bos_token_id"] == bos
    assert generation["eos_token_id"] == [eos, end]
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    for token in ("<|startoftext|>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"):
        assert tokenizer.encode(token, add_special_tokens=False).ids == [tokenizer.token_to_id(token)]
    assert tokenizer.encode("Speak.").ids[0] == bos


@given(st.text(max_size=40))
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
