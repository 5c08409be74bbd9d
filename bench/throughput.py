"""Output tokens a second, offline: `python -m bench.throughput`.

A Llama of 32 million parameters with random weights, 64 requests at once, prompts of 32-256 tokens, 64 output tokens
each. Beside the rate: this machine's float32 matmul rate, where a decode step's time goes, padding, the host's part.
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.shared.flags import file_to_write
from bench.shared.flops import matmul_flops
from bench.shared.machine import describe, in_words, matmul_rate
from bench.shared.step_times import StepTimes
from bench.shared.workload import LLAMA_32M, REQUESTS, prompts
from jaxserve.checkpoints import config_from_hf
from jaxserve.commands.results import write_text
from jaxserve.core.plan import Masks, StepPlan, StepResult
from jaxserve.core.sampling import SamplingParams
from jaxserve.llm import LLM
from jaxserve.models.config import ModelConfig
from jaxserve.models.params import random_params
from jaxserve.runtime.batch import BatchBuilder


def run_once(llm: LLM, seed: int, outputs: int) -> dict[str, float]:
    times = StepTimes(llm.runner)
    llm.engine.replace_executor(times)
    batch = prompts(REQUESTS, seed, llm.model_config.vocab_size)
    params = SamplingParams(temperature=0.0, max_tokens=outputs, ignore_eos=True)
    begin = time.perf_counter()
    results = llm.generate(batch, params, use_tqdm=False)
    wall = time.perf_counter() - begin
    llm.engine.replace_executor(llm.runner)
    tokens = sum(len(r.outputs[0].token_ids) for r in results)
    assert tokens == REQUESTS * outputs
    return {
        "tokens_per_s": tokens / wall,
        "prompt_tokens": sum(map(len, batch)),
        "wall_s": wall,
        "steps": times.steps,
        "padding": times.padded_tokens / times.real_tokens,
        "submit_ms": 1e3 * times.submit_s / times.steps,
        "scheduling_ms": 1e3 * (wall - times.submit_s - times.wait_s) / times.steps,
    }


class HostOnly:
    """An executor without a device: packs every plan as the runner does, and invents the tokens."""

    def __init__(self, llm: LLM) -> None:
        slots, size = llm.config.scheduler.max_num_seqs, llm.config.cache.block_size
        self._batch = BatchBuilder(slots, -(-llm.limits.max_model_len // size), size)

    def submit(self, plan: Any) -> "Invented":
        for admitted in plan.admitted:
            self._batch.load(admitted)
        self._batch.model_input(plan, plan.bucket)
        return Invented(self._batch, plan)

    def reset(self) -> None:
        pass


@dataclass(frozen=True)
class Invented:
    batch: BatchBuilder
    plan: StepPlan

    def sample(self, masks: Masks | None = None) -> None:
        self.batch.sample_input(self.plan, self.plan.bucket)

    def wait(self) -> StepResult:
        return StepResult.of_one_token(self.plan, 7)


def host_ms(llm: LLM, rows: int = 64, steps: int = 200) -> float:
    """Milliseconds of a decode step outside the device call: plan, pack, commit, outputs (median)."""
    llm.engine.replace_executor(HostOnly(llm))
    params = SamplingParams(temperature=0.0, max_tokens=steps, ignore_eos=True)
    for prompt in prompts(rows, 5, llm.model_config.vocab_size):
        llm.engine.add(llm.make_request(prompt, params))
    times = []
    while llm.engine.has_work:
        begin = time.perf_counter()
        outputs = llm.engine.step()
        if len(outputs) == rows:
            times.append(time.perf_counter() - begin)
    llm.engine.replace_executor(llm.runner)
    llm.engine.scheduler.blocks.drop_prefixes()
    return 1e3 * statistics.median(times)


def decode_parts(llm: LLM, rows: int = 64, context: int = 176, repeats: int = 15) -> dict[str, float]:
    """Milliseconds of one decode step's parts, each alone: matmuls, attention, greedy sampling."""
    from kernels_pallas.paged_attention import api
    from kernels_pallas.pages import Pages
    from kernels_pallas.write_kv import write

    config, params = llm.model_config, llm.params
    size = llm.config.cache.block_size
    width = -(-2048 // size)
    pages = rows * -(-context // size) + 1
    key = jax.random.key(0)
    shape = (pages, config.num_kv_heads, size, config.head_dim)
    cache = [Pages(jax.random.normal(key, shape), jax.random.normal(key, shape)) for _ in range(config.num_layers)]
    tables = np.zeros((rows, width), np.int32)
    tables[:, : -(-context // size)] = 1 + np.arange(pages - 1).reshape(rows, -1)
    lengths = np.full(rows, context, np.int32)
    q = jax.random.normal(key, (rows, config.num_heads, config.head_dim))
    kv = jax.random.normal(key, (rows, config.num_kv_heads, config.head_dim))
    slots = tables[np.arange(rows), (context - 1) // size] * size + (context - 1) % size

    def attention(cache: Any, q: Any, kv: Any) -> Any:
        written = []
        for pages in cache:
            written.append(write(pages, kv, kv, slots))
            q = api.decode(q, written[-1], jnp.asarray(tables), jnp.asarray(lengths))
        return written, q

    def matmuls(params: Any, x: Any) -> Any:
        for layer in params["layers"]:
            d = x.shape[1]
            y = x @ layer["wqkv"].reshape(d, -1)
            wo = layer["wo"].reshape(-1, d)
            x = y[:, : wo.shape[0]] @ wo
            y = x @ layer["w_gate_up"].reshape(d, -1)
            x = y[:, : layer["w_down"].shape[0]] @ layer["w_down"]
        return x @ params["lm_head"]

    x = jax.random.normal(key, (rows, config.hidden_size))
    logits = jax.random.normal(key, (rows, config.vocab_size))
    run_attention, run_matmuls = jax.jit(attention, donate_argnums=0), jax.jit(matmuls)
    run_argmax = jax.jit(lambda z: jnp.argmax(z, axis=1))
    state = [cache]

    def step() -> Any:
        state[0], out = run_attention(state[0], q, kv)
        return out

    return {
        "matmul_ms": _median_ms(lambda: run_matmuls(params, x), repeats),
        "attention_ms": _median_ms(step, repeats),
        "sampling_ms": _median_ms(lambda: run_argmax(logits), repeats),
    }


def matmul_s(config: ModelConfig, figures: dict[str, Any], outputs: int) -> float:
    """What a run's matmuls alone would take at this machine's rates, without padding."""
    decoded = REQUESTS * (outputs - 1)  # the first of a request's outputs comes with its prompt
    prefill = matmul_flops(config, figures["median"]["prompt_tokens"], REQUESTS, fused_queries=True)
    decode = matmul_flops(config, decoded, decoded)
    return prefill / figures["matmul_gflops_512_rows"] / 1e9 + decode / figures["matmul_gflops_64_rows"] / 1e9


def _median_ms(run: Any, repeats: int) -> float:
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="counted runs after one that is not (default 5)")
    parser.add_argument("--outputs", type=int, default=64, help="output tokens a request (default 64)")
    parser.add_argument("--json", type=file_to_write, help="write the figures here as well")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any engine setting")
    arguments = parser.parse_args()
    settings: dict[str, Any] = {
        "max_num_seqs": 64,
        "max_num_batched_tokens": 1024,
        "max_model_len": 512,
        "decode_buckets": (16, 64),
        "mixed_decode_buckets": (64,),
        "prefill_buckets": (256, 512, 1024),
        "prefill_rows": 16,
    }
    settings |= {name: json.loads(value) for name, value in (item.split("=", 1) for item in arguments.set)}
    config = config_from_hf(LLAMA_32M)
    params = random_params(config, seed=0, dtype=jnp.float32)
    begin = time.perf_counter()
    llm = LLM(params=params, model_config=config, **settings)
    figures: dict[str, Any] = {"machine": describe(), "settings": settings, "start_s": time.perf_counter() - begin}
    run_once(llm, 0, arguments.outputs)
    runs = [run_once(llm, seed, arguments.outputs) for seed in range(1, arguments.runs + 1)]
    figures["runs"] = runs
    figures["median"] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    figures["host_ms"] = host_ms(llm)
    figures["decode_parts"] = decode_parts(llm)
    figures["matmul_gflops_64_rows"] = matmul_rate(64) / 1e9
    figures["matmul_gflops_512_rows"] = matmul_rate(512) / 1e9
    figures["matmul_s"] = matmul_s(config, figures, arguments.outputs)
    figures["compilations_after_warmup"] = llm.runner.compilations_after_warmup
    _report(figures)
    if arguments.json:
        write_text(arguments.json, json.dumps(figures, indent=1) + "\n")


def _report(figures: dict[str, Any]) -> None:
    machine, median, parts = figures["machine"], figures["median"], figures["decode_parts"]
    rates = [run["tokens_per_s"] for run in figures["runs"]]
    lines = [
        ("machine", in_words(machine)),
        ("output tokens/s", f"{median['tokens_per_s']:.0f} ({min(rates):.0f} - {max(rates):.0f} in {len(rates)} runs)"),
        ("seconds", f"{median['wall_s']:.2f}, of which matmuls at the rates below {figures['matmul_s']:.2f}"),
        ("steps", f"{median['steps']:.0f}, padded over real tokens {median['padding']:.3f}"),
        ("host, 64-row step", f"{figures['host_ms']:.2f} ms outside the device call (no device running beside it)"),
        ("in the runs, a step", f"schedule {median['scheduling_ms']:.2f} ms, pack, call {median['submit_ms']:.2f} ms"),
        ("decode step, 64 rows", ", ".join(f"{name[:-3]} {value:.1f} ms" for name, value in parts.items())),
        ("float32 matmul", f"{figures['matmul_gflops_64_rows']:.0f} GFLOP/s at 64 rows, "
                           f"{figures['matmul_gflops_512_rows']:.0f} at 512"),
        ("compiled after warm-up", str(figures["compilations_after_warmup"])),
    ]  # fmt: skip
    for name, value in lines:
        print(f"{name:24s} {value}")


if __name__ == "__main__":
    main()
