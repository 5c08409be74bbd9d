"""Trains a small Llama on the plays and writes it as a Hugging Face directory.

    python examples/train_tiny/train.py --text tinyshakespeare.txt --out my_model

The first 90% of the text trains (the tokenizer too), the next 5% chooses the checkpoint that is kept, the last 5% is
looked at once, at the end. Weight decay and dropout hold off overfitting, since the steps take about seven times the
tokens that the text has. Most steps take short rows, which are cheap; the last ones take rows as long as the model's
context, so that it reads that far. Everything random comes from `--seed`.
"""

import argparse
import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from corpus import Corpus, read_scenes, scene_text, split_scenes, train_tokenizer
from export import round_weights, save_directory
from flax import nnx
from model import Llama, LlamaConfig
from tokenizers import Tokenizer
from tqdm import trange

SAMPLE_PROMPT = "ROMEO:\n"


def token_losses(model: Llama, rows: jax.Array) -> tuple[jax.Array, jax.Array]:  # rows [B, T + 1]
    """Summed loss in nats and number of targets; targets below 0 are left out."""
    inputs, targets = jnp.maximum(rows[:, :-1], 0), rows[:, 1:]
    losses = optax.softmax_cross_entropy_with_integer_labels(model(inputs), jnp.maximum(targets, 0))
    counted = targets >= 0
    return jnp.sum(losses * counted), jnp.sum(counted)


@nnx.jit
def train_step(model: Llama, optimizer: nnx.Optimizer[Llama], rows: jax.Array) -> jax.Array:
    def mean_loss(model: Llama) -> jax.Array:
        total, count = token_losses(model, rows)
        return total / count

    loss, grads = nnx.value_and_grad(mean_loss)(model)
    optimizer.update(model, grads)
    return loss


@nnx.jit
def eval_step(model: Llama, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    return token_losses(model, rows)


def heldout_loss(model: Llama, corpus: Corpus, context: int, rows_per_step: int = 2) -> tuple[float, float]:
    """Nats per token and bits per byte of text, every token predicted once from at most `context` before it."""
    model.eval()
    rows = corpus.heldout_rows(context + 1)
    filler = np.full((-len(rows) % rows_per_step, context + 1), -1, np.int32)
    rows = np.concatenate([rows, filler])
    sums = [eval_step(model, rows[i : i + rows_per_step]) for i in range(0, len(rows), rows_per_step)]
    total, count = (float(sum(parts)) for parts in zip(*sums, strict=True))
    return total / count, total / corpus.num_bytes / math.log(2)


def make_optimizer(model: Llama, steps: int, peak: float, weight_decay: float) -> nnx.Optimizer[Llama]:
    """AdamW: linear warm-up, cosine down to a twentieth, gradient norm held to 1, decay on matrices only."""
    rate = optax.warmup_cosine_decay_schedule(0.0, peak, steps // 20, steps, end_value=peak / 20)
    matrices = partial(jax.tree.map, lambda weight: weight.ndim > 1)
    adamw = optax.adamw(rate, b1=0.9, b2=0.98, weight_decay=weight_decay, mask=matrices)
    return nnx.Optimizer(model, optax.chain(optax.clip_by_global_norm(1.0), adamw), wrt=nnx.Param)


@nnx.jit
def _next_logits(model: Llama, tokens: jax.Array, position: jax.Array) -> jax.Array:  # [1, T], [] -> [V]
    return model(tokens)[0, position]


def sample(model: Llama, tokenizer: Tokenizer, prompt: str, rng: np.random.Generator, temperature: float = 0.8) -> str:
    """Continues the prompt to 200 tokens or the scene's end, one whole forward pass a token."""
    model.eval()
    ids = tokenizer.encode(prompt).ids
    row = np.zeros((1, 200), np.int32)
    while len(ids) < row.shape[1]:
        row[0, : len(ids)] = ids
        logits = np.asarray(_next_logits(model, row, len(ids) - 1), np.float64)
        ids.append(int(np.argmax(logits / temperature + rng.gumbel(size=logits.shape))))
        if ids[-1] == tokenizer.token_to_id("<|endoftext|>"):
            break
    return tokenizer.decode(ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="the plays, one speech a paragraph")
    parser.add_argument("--out", type=Path, required=True, help="the Hugging Face directory to write")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch-tokens", type=int, default=2048, help="tokens in a step")
    parser.add_argument("--context", type=int, default=256, help="tokens in a short training row")
    parser.add_argument("--long-share", type=float, default=0.15, help="share of steps that take rows of full length")
    parser.add_argument("--chat-share", type=float, default=0.25, help="share of rows that are chats")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="the highest, after the warm-up")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--eval-every", type=int, default=100, help="steps between two validations")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    config = LlamaConfig()
    train_scenes, validation_scenes, test_scenes = split_scenes(read_scenes(args.text))
    tokenizer = train_tokenizer([scene_text(scene) for scene in train_scenes], config.vocab_size)
    training, validation, test = (Corpus(part, tokenizer) for part in (train_scenes, validation_scenes, test_scenes))
    model = Llama(config, dropout=args.dropout, rngs=nnx.Rngs(args.seed))
    size = sum(param.size for param in jax.tree.leaves(nnx.state(model, nnx.Param)))
    print(f"{size:,} parameters; {len(training.tokens):,} training tokens, {len(training.chats):,} chats")

    optimizer = make_optimizer(model, args.steps, args.learning_rate, args.weight_decay)
    rng = np.random.default_rng(args.seed)
    best_loss, best_params = math.inf, nnx.state(model, nnx.Param)
    progress = trange(1, args.steps + 1, desc="training", unit="step", smoothing=0.05)
    for step in progress:
        length = args.context if step <= args.steps * (1 - args.long_share) else config.max_position_embeddings
        rows = training.batch(rng, args.batch_tokens // length, length + 1, args.chat_share)
        model.train()
        loss = train_step(model, optimizer, rows)
        progress.set_postfix(loss=f"{float(loss):.3f}", refresh=False)
        if step % args.eval_every == 0 or step == args.steps:
            validation_loss, _ = heldout_loss(model, validation, config.max_position_embeddings)
            progress.write(f"step {step}: training {float(loss):.3f}, validation {validation_loss:.3f} nats a token")
            if validation_loss < best_loss:
                best_loss, best_params = validation_loss, jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))

    nnx.update(model, best_params)
    round_weights(model)
    for name, part in (("validation", validation), ("test", test)):
        nats, bits = heldout_loss(model, part, config.max_position_embeddings)
        print(f"{name}: {nats:.3f} nats a token, {bits:.3f} bits a byte over {part.num_bytes:,} bytes")
    save_directory(model, tokenizer, args.out)
    print(f"wrote {args.out}\n\n{sample(model, tokenizer, SAMPLE_PROMPT, rng)}")


if __name__ == "__main__":
    main()
