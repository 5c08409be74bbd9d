"""OpenVINO GenAI on the requests of `bench.throughput`; runs in an environment of its own, without jaxserve.

    python3 -m venv peer && peer/bin/pip install openvino-genai openvino-tokenizers optimum-intel transformers torch
    peer/bin/python -m bench.peers.openvino --runs 3

Weights of the same shapes, random as ours are, are made and exported on the first run and kept under `--weights`.
Prints one JSON object a run. `python -m bench.peers` runs this and ours in turn.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.peers.runs import figures, parser, print_runs
from bench.peers.weights import hugging_face
from bench.shared.workload import LLAMA_32M, REQUESTS, prompts

TOKENIZER = Path(__file__).resolve().parent.parent.parent / "jaxserve" / "embedded" / "tokenizer.json"


def export(folder: Path) -> Path:
    """The random Llama as an OpenVINO model. The pipeline wants a tokenizer, too; the requests are token ids."""
    model = folder / "openvino"
    if model.is_dir():
        return model
    from transformers import PreTrainedTokenizerFast

    weights = hugging_face(folder)
    PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZER), eos_token="<|end|>").save_pretrained(weights)
    tool = Path(sys.executable).parent / "optimum-cli"
    task = ["--task", "text-generation-with-past", "--weight-format", "fp32"]
    subprocess.run([tool, "export", "openvino", "--model", weights, *task, model], check=True, capture_output=True)
    return model


def pipeline(model: Path, precision: str, budget: int) -> Any:
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_batched_tokens, scheduler.max_num_seqs = budget, REQUESTS
    scheduler.cache_size, scheduler.enable_prefix_caching = 2, False
    properties = {"INFERENCE_PRECISION_HINT": precision, "KV_CACHE_PRECISION": precision}
    return openvino_genai.ContinuousBatchingPipeline(str(model), scheduler, "CPU", properties)


def run_once(pipe: Any, seed: int, outputs: int) -> dict[str, Any]:
    import numpy as np
    import openvino
    import openvino_genai

    sampling = openvino_genai.GenerationConfig()
    sampling.max_new_tokens, sampling.ignore_eos, sampling.do_sample = outputs, True, False
    batch = prompts(REQUESTS, seed, LLAMA_32M["vocab_size"])
    tensors = [openvino.Tensor(np.array([prompt], np.int64)) for prompt in batch]
    begin = time.perf_counter()
    results = pipe.generate(tensors, [sampling] * REQUESTS)
    wall = time.perf_counter() - begin
    tokens = sum(len(result.m_generation_ids[0]) for result in results)
    return figures(f"OpenVINO GenAI {openvino_genai.__version__}", tokens, outputs, wall)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--precision", default="f32", choices=["f32", "bf16"])
    given = flags.parse_args()
    pipe = pipeline(export(given.weights), given.precision, given.budget)
    print_runs(lambda seed: run_once(pipe, seed, given.outputs), given.runs)


if __name__ == "__main__":
    main()
