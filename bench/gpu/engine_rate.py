"""Part 4: the engine offline. 256 requests at once, prompts and outputs of 100-1024 tokens, random weights; and, where
torch and transformers are installed, transformers' continuous batching on the same weights and requests.
"""

import importlib.util
import random
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from bench.gpu.part import Item, Setting
from bench.gpu.random_weights import device_params
from bench.shared.models import MODELS, tiny
from bench.shared.step_times import StepTimes
from jaxserve.core.sampling import SamplingParams
from jaxserve.llm import LLM

SETTINGS: dict[str, Any] = {
    "max_num_seqs": 256, "max_num_batched_tokens": 2048, "max_model_len": 2048, "block_size": 64,
    "decode_buckets": (64, 256), "mixed_decode_buckets": (256,), "prefill_buckets": (2048,), "prefill_rows": 16,
    "gpu_memory_utilization": 0.75, "compilation_cache_dir": "",
}  # fmt: skip
TINY = SETTINGS | {
    "max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 128, "block_size": 16, "decode_buckets": (8,),
    "mixed_decode_buckets": (8,), "prefill_buckets": (64,), "prefill_rows": 8,
}  # fmt: skip


def items(setting: Setting) -> Iterator[Item]:
    for name in ("8b", "0.6b"):
        yield Item(f"engine {name}", partial(_engine, name, setting), limit_s=100.0)
    yield Item("transformers 0.6b", partial(_transformers, "0.6b", setting), limit_s=150.0)


def requests(setting: Setting, vocab: int) -> list[tuple[list[int], int]]:
    """(prompt, output tokens) of each request, the same for the same seed."""
    rng = random.Random(setting.seed)
    count, low, high = (12, 10, 40) if setting.dry_run else (256, 100, 1024)
    sizes = [(rng.randint(low, high), rng.randint(low, high)) for _ in range(count)]
    return [([rng.randrange(vocab) for _ in range(prompt)], output) for prompt, output in sizes]


def _engine(name: str, setting: Setting) -> dict[str, Any]:
    config = tiny(MODELS[name]) if setting.dry_run else MODELS[name]
    begin = time.perf_counter()
    llm = LLM(params=device_params(config), model_config=config, progress=False,
              **(TINY if setting.dry_run else SETTINGS))  # fmt: skip
    start_s = time.perf_counter() - begin
    batch = requests(setting, config.vocab_size)
    times = StepTimes(llm.runner)
    llm.engine.replace_executor(times)
    params = [SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True) for _, output in batch]
    begin = time.perf_counter()
    results = llm.generate([prompt for prompt, _ in batch], params, use_tqdm=False)
    took = time.perf_counter() - begin
    tokens = sum(len(result.outputs[0].token_ids) for result in results)
    if tokens != sum(output for _, output in batch):
        raise RuntimeError(f"{tokens} tokens came back")
    return {
        "requests": len(batch), "prompt_tokens": sum(len(prompt) for prompt, _ in batch), "output_tokens": tokens,
        "s": took, "output_tokens_per_s": tokens / took, "start_s": start_s, "steps": times.steps,
        "step_s": took / times.steps, "submit_s": times.submit_s / times.steps,
        "host_not_hidden_s": (took - times.wait_s) / times.steps, "kv_bytes": llm.runner.kv_bytes,
        "compilations_after_warmup": llm.runner.compilations_after_warmup,
    }  # fmt: skip


def _transformers(name: str, setting: Setting) -> dict[str, Any]:
    missing = [module for module in ("torch", "transformers") if importlib.util.find_spec(module) is None]
    if missing:
        return {"skipped": f"{' and '.join(missing)} not installed"}
    from bench.gpu.transformers_rate import measure

    config = tiny(MODELS[name]) if setting.dry_run else MODELS[name]
    params = jax.tree.map(lambda leaf: np.asarray(leaf.astype("float32")), device_params(config))
    return measure(config, params, requests(setting, config.vocab_size), on_gpu=not setting.dry_run)
