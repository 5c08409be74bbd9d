"""What fits on a GPU: weights, what a step takes beside them, and how many KV blocks are left.

    memory of the GPU
    |<- JAX's share ------------------------------------------------------>|
    |<- gpu_memory_utilization ----------------------------------->|
    | weights | per-slot state | a step's temporaries | KV blocks ..       |

A step's temporaries are exact where the widest step can be compiled for the GPU (JAX's CUDA plugin, no GPU), and an
estimate elsewhere: the activations of one layer, and the logits as often as the sampler holds them.
"""

import os
import time
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxserve.core.buckets import BucketTable
from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError, NotEnoughMemory
from jaxserve.core.plan import Bucket
from jaxserve.core.sampling import MAX_BANNED, MAX_LOGIT_BIAS
from jaxserve.core.settings import require
from jaxserve.core.target import Target
from jaxserve.models.config import ModelConfig
from jaxserve.models.leaves import activation_width, weight_bytes
from jaxserve.models.registry import model_for
from jaxserve.runtime.geometry import Geometry, pages_dtype
from jaxserve.runtime.kv_cache import block_bytes
from jaxserve.runtime.programs.lowering import Lowering
from jaxserve.runtime.sampling.variant import Variant
from kernels_pallas.paged_attention.choice import choose
from kernels_pallas.paged_attention.options import Problem

SAMPLER_LOGITS = 4
"""Arrays of [rows, V] in float32 that the sampler with every parameter holds at once."""


@dataclass(frozen=True, slots=True)
class Programs:
    """What the widest step takes, in bytes, and how long it took to compile (None: it is an estimate)."""

    temporaries: int
    compile_s: float | None = None
    programs: int = 0
    """That the configuration has the engine compile."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """Bytes, and blocks of `block_size` tokens."""

    memory: int
    """Of the GPU."""
    usable: int
    """JAX's share of it, times gpu_memory_utilization."""
    weights: int
    state: int
    """Block tables, tokens and sampling lists of the slots."""
    programs: Programs
    block: int
    block_size: int
    blocks: int
    max_num_seqs: int
    max_model_len: int
    held_by: str
    """What bounds the number of blocks."""

    def sequences(self, length: int) -> tuple[int, str]:
        """How many sequences of so many tokens run at once, and the limit that binds."""
        by_blocks = self.blocks // -(-length // self.block_size)
        if by_blocks < self.max_num_seqs:
            return by_blocks, f"KV blocks ({self.held_by})"
        return self.max_num_seqs, "max_num_seqs"


def step_temporaries(model: ModelConfig, bucket: Bucket, itemsize: int = 2) -> int:
    """Bytes of the activations that a step of the bucket holds at once: an estimate from above for bfloat16."""
    widest = max(activation_width(layer) for layer in model_for(model).leaves(model)["layers"])
    return itemsize * bucket.tokens * widest


def estimate_programs(model: ModelConfig, buckets: list[Bucket], itemsize: int = 2) -> Programs:
    """Without a compiler: the widest step's activations, and its logits in the sampler."""
    logits = 4 * max(bucket.sample_rows for bucket in buckets) * model.vocab_size
    return Programs(max(step_temporaries(model, b, itemsize) for b in buckets) + SAMPLER_LOGITS * logits)


def fit(
    model: ModelConfig, config: EngineConfig, target: Target, *, dtype: Any, programs: Programs, devices: int = 1
) -> Capacity:
    """What fits on each of `devices` GPUs, weights, heads and KV split evenly among them.

    Raises:
      NotEnoughMemory: weights and temporaries leave no room for one sequence of max_model_len.
      ConfigError: the KV heads cannot be split so.
    """
    if model.num_kv_heads % devices:
        raise ConfigError(
            f"tensor_parallel = {devices} cannot work: give a divisor of the {model.num_kv_heads} KV heads"
        )
    max_len = config.model.max_model_len or model.context_length
    require(max_len <= model.context_length, "max_model_len", max_len, f"at most {model.context_length}")
    weights = weight_bytes(model_for(model).leaves(model), dtype) // devices
    slots = config.scheduler.max_num_seqs + 1
    state = slots * 4 * (max_len + -(-max_len // config.cache.block_size) + 2 * MAX_LOGIT_BIAS + MAX_BANNED)
    usable = int(target.memory * jax_share() * config.cache.gpu_memory_utilization)
    block = block_bytes(model, config.cache.block_size, pages_dtype(config.cache, dtype)) // devices
    room = usable - weights - state - programs.temporaries
    blocks, held_by = _blocks(config, room, block, max_len)
    if blocks * config.cache.block_size < max_len:
        raise NotEnoughMemory(
            f"no room for one sequence of {max_len} tokens on {target.device}: of {usable / 2**30:.1f} GiB, weights "
            f"take {weights / 2**30:.1f} and the widest step {programs.temporaries / 2**30:.1f}; {max(blocks, 0)} "
            f"blocks are left. Lower max_model_len or max_num_batched_tokens, raise "
            f"gpu_memory_utilization, or take more GPUs"
        )
    return Capacity(
        target.memory, usable, weights, state, programs, block, config.cache.block_size, blocks,
        config.scheduler.max_num_seqs, max_len, held_by,
    )  # fmt: skip


def jax_share() -> float:
    """The share of a GPU's memory that JAX takes: XLA_PYTHON_CLIENT_MEM_FRACTION, by default three quarters."""
    given = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75")
    try:
        share = float(given)
    except ValueError:
        share = 0.0
    require(0.0 < share <= 1.0, "XLA_PYTHON_CLIENT_MEM_FRACTION", given, "a share above 0 and at most 1")
    return share


def compile_programs(model: ModelConfig, config: EngineConfig, target: Target, dtype: Any) -> Programs:
    """The widest step and the sampler with every parameter, compiled for the target.

    Raises:
      CompilerMissing: JAX's CUDA plugin is not installed.
    """
    from jaxserve.runtime.programs.compile_only import CompileOnlyDevice

    device = CompileOnlyDevice(target)
    pages = pages_dtype(config.cache, dtype)
    problem = Problem(
        model.head_dim, model.group_size, config.cache.block_size, jnp.dtype(dtype).name, pages.name
    )  # fmt: skip
    backend = choose(config.runtime.attention_backend, problem, target.capability)
    size = block_bytes(model, config.cache.block_size, pages)
    geometry = Geometry.of(model, config, dtype, num_blocks=max(2, min(target.memory // 2 // size, 4096)))
    runtime = config.replace(attention_backend=backend).runtime
    lowering = Lowering(geometry, model_for(model).abstract_params(model, dtype), device, runtime)
    buckets = BucketTable.from_config(config.buckets, config.scheduler).all()
    widest = max(buckets, key=lambda bucket: bucket.tokens)
    rows = max(bucket.sample_rows for bucket in buckets)
    begin = time.perf_counter()
    with device.lowering():
        lowered = lowering.model_program(widest), lowering.sampler(rows, Variant.FULL)
    step, sampler = (program.compile().memory_analysis() for program in lowered)
    took = time.perf_counter() - begin
    logits = step.output_size_in_bytes - step.alias_size_in_bytes
    return Programs(
        max(step.temp_size_in_bytes + logits, logits + sampler.temp_size_in_bytes), took, len(buckets)
    )  # fmt: skip


def _blocks(config: EngineConfig, room: int, block: int, max_len: int) -> tuple[int, str]:
    """KV blocks besides the scratch block, as `size_pool` counts them, and what bounds their number."""
    cache = config.cache
    if cache.num_blocks is not None:
        return min(cache.num_blocks, room // block), "num_blocks" if cache.num_blocks <= room // block else "memory"
    useful = -(-config.scheduler.max_num_seqs * max_len // cache.block_size)
    if cache.kv_cache_bytes is not None:
        room, said = min(room, cache.kv_cache_bytes), "kv_cache_bytes" if cache.kv_cache_bytes < room else "memory"
        return room // block, said
    return (useful, "max_num_seqs x max_model_len") if useful <= room // block else (room // block, "memory")
