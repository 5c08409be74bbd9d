"""llama.cpp on the requests of `bench.throughput`; runs in an environment of its own, without jaxserve.

    python3 -m venv peer && peer/bin/pip install llama-cpp-python gguf      (built from source: a compiler and cmake)
    peer/bin/python -m bench.peers.llama_cpp --runs 3

A GGUF file with float32 weights of the same shapes, random as ours are, is written on the first run and kept under
`--weights`. The loop is the shape of llama.cpp's own batched example: all prompts in batches of `--budget` tokens, then
one token a sequence and step, all 64 in one batch; each sequence has KV cells of its own, in float32. Prints one JSON
object a run. `python -m bench.peers` runs this and ours in turn.
"""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.runs import figures, parser, print_runs
from bench.shared.workload import LLAMA_32M, REQUESTS, prompts

LONGEST = 256


def export(folder: Path) -> Path:
    """A random Llama as GGUF, without a vocabulary: the requests are token ids."""
    file = folder / "llama32m-f32.gguf"
    if file.is_file():
        return file
    import gguf

    folder.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(file, "llama")
    wide, inner = LLAMA_32M["hidden_size"], LLAMA_32M["intermediate_size"]
    heads, kv_heads = LLAMA_32M["num_attention_heads"], LLAMA_32M["num_key_value_heads"]
    writer.add_context_length(LLAMA_32M["max_position_embeddings"])
    writer.add_embedding_length(wide)
    writer.add_block_count(LLAMA_32M["num_hidden_layers"])
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(LLAMA_32M["rms_norm_eps"])
    writer.add_rope_dimension_count(wide // heads)
    writer.add_rope_freq_base(LLAMA_32M["rope_theta"])
    writer.add_vocab_size(LLAMA_32M["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    rng = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        value = rng.normal(0.0, 0.02, shape) if len(shape) == 2 else np.ones(shape)
        writer.add_tensor(f"{name}.weight", value.astype(np.float32))

    add("token_embd", LLAMA_32M["vocab_size"], wide)
    for layer in range(LLAMA_32M["num_hidden_layers"]):
        at, kv = f"blk.{layer}", wide // heads * kv_heads
        add(f"{at}.attn_norm", wide), add(f"{at}.ffn_norm", wide)
        add(f"{at}.attn_q", wide, wide), add(f"{at}.attn_k", kv, wide)
        add(f"{at}.attn_v", kv, wide), add(f"{at}.attn_output", wide, wide)
        add(f"{at}.ffn_gate", inner, wide), add(f"{at}.ffn_up", inner, wide), add(f"{at}.ffn_down", wide, inner)
    add("output_norm", wide), add("output", LLAMA_32M["vocab_size"], wide)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()
    return file


class Peer:
    """A context of llama.cpp with a KV cache for all requests, and the two loops over it."""

    def __init__(self, model: Path, outputs: int, budget: int, threads: int, flash: bool) -> None:
        import llama_cpp as api

        self.api, self.budget, self.vocab = api, budget, LLAMA_32M["vocab_size"]
        self._silent = api.llama_log_callback(lambda level, text, data: None)
        api.llama_log_set(self._silent, None)
        api.llama_backend_init()
        given = api.llama_model_default_params()
        self.model = api.llama_model_load_from_file(str(model).encode(), given)
        wanted = api.llama_context_default_params()
        wanted.n_ctx, wanted.n_seq_max = REQUESTS * (LONGEST + outputs), REQUESTS
        wanted.n_batch = wanted.n_ubatch = budget
        wanted.n_threads = wanted.n_threads_batch = threads
        wanted.type_k = wanted.type_v = 0  # GGML_TYPE_F32
        wanted.flash_attn_type = 1 if flash else 0
        wanted.kv_unified = False
        self.context = api.llama_init_from_model(self.model, wanted)
        assert self.context, "llama.cpp could not make a context"
        self.batch = api.llama_batch_init(budget, 0, 1)

    def step(self, tokens: list[tuple[int, int, int, bool]]) -> dict[int, int]:
        """One decode call over (token, position, sequence, wanted); the greedy token of each wanted sequence."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wanted
        code = self.api.llama_decode(self.context, batch)
        assert code == 0, f"llama_decode gave {code}"
        picked = {}
        for i, (_, _, sequence, wanted) in enumerate(tokens):
            if wanted:
                logits = self.api.llama_get_logits_ith(self.context, i)
                picked[sequence] = int(np.ctypeslib.as_array(logits, (self.vocab,)).argmax())
        return picked

    def generate(self, batch: list[list[int]], outputs: int) -> list[list[int]]:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        last: dict[int, int] = {}
        line = [(t, p, s, p == len(tokens) - 1) for s, tokens in enumerate(batch) for p, t in enumerate(tokens)]
        for at in range(0, len(line), self.budget):
            last |= self.step(line[at : at + self.budget])
        written = [[last[s]] for s in range(len(batch))]
        for i in range(outputs - 1):
            last = self.step([(last[s], len(tokens) + i, s, True) for s, tokens in enumerate(batch)])
            for s, token in last.items():
                written[s].append(token)
        return written


def run_once(peer: Peer, seed: int, outputs: int) -> dict[str, Any]:
    batch = prompts(REQUESTS, seed, LLAMA_32M["vocab_size"])
    begin = time.perf_counter()
    written = peer.generate(batch, outputs)
    wall = time.perf_counter() - begin
    name = f"llama.cpp (llama-cpp-python {peer.api.__version__})"
    return figures(name, sum(map(len, written)), outputs, wall)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--threads", type=int, default=os.cpu_count(), help="default: the machine's cores")
    flags.add_argument("--flash", action="store_true", help="llama.cpp's flash attention")
    given = flags.parse_args()
    peer = Peer(export(given.weights), given.outputs, given.budget, given.threads, given.flash)
    print_runs(lambda seed: run_once(peer, seed, given.outputs), given.runs)


if __name__ == "__main__":
    main()
