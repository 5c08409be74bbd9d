"""Part 3: whole steps with random weights, model and sampler, beside the least time that the machine could need.

    floor of a step = max(weights and KV read / copy bandwidth, FLOPs / matmul rate)

Decode tables name every page of a pool as large as fits, in an order that no cache can follow; where rows x context is
more than the pool, rows share pages.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.gpu.part import Item, Setting
from bench.gpu.random_weights import device_params
from bench.gpu.timing import copy_bandwidth, matmul_rate, memory_limit, seconds
from bench.shared.flops import matmul_flops, size_of
from bench.shared.models import MODELS, tiny
from jaxserve.core.config import EngineConfig
from jaxserve.core.plan import Bucket
from jaxserve.models.config import ModelConfig
from jaxserve.models.registry import model_for
from jaxserve.parallel.placement import Placement
from jaxserve.runtime.batch import SAMPLE_FIELDS, packed_size, unpack_model
from jaxserve.runtime.geometry import Geometry
from jaxserve.runtime.kv_cache import allocate_cache, block_bytes
from jaxserve.runtime.programs.lowering import Lowering
from jaxserve.runtime.sampling.sampler import Variant, init_slot_state
from jaxserve.runtime.steps import ModelState

BLOCK, SLOTS, LONGEST = 64, 256, 8192


@dataclass(frozen=True)
class Step:
    """What a step does: decode rows at a context, and one chunk of prompt from position 0."""

    rows: int
    context: int
    tokens: int

    @property
    def bucket(self) -> Bucket:
        chunks = 1 if self.tokens else 0
        return Bucket(self.rows, self.tokens, chunks, self.rows + chunks)

    def __str__(self) -> str:
        parts = [f"decode {self.rows} x {self.context}"] if self.rows else []
        return " + ".join(parts + ([f"prefill {self.tokens}"] if self.tokens else []))


def items(setting: Setting) -> Iterator[Item]:
    steps = [Step(64, 4096, 0), Step(0, 0, 4096), Step(64, 1024, 0), Step(64, 1024, 2048), Step(256, 1024, 0),
             Step(1, 1024, 0), Step(16, 1024, 0), Step(0, 0, 2048), Step(0, 0, 8192), Step(1, 4096, 0),
             Step(16, 4096, 0), Step(256, 4096, 0)]  # fmt: skip
    small = [Step(64, 1024, 0), Step(0, 0, 4096), Step(64, 4096, 0), Step(256, 1024, 0), Step(1, 1024, 0)]
    small += [step for step in steps if step not in small]
    if setting.dry_run:
        steps, small = [Step(4, 128, 0), Step(0, 0, 128), Step(2, 64, 128)], [Step(4, 128, 0)]
    for name, some in (("8b", steps), ("1b", small)):
        for step in some:
            yield Item(f"{name} {step}", partial(_measure, name, step, setting.dry_run), limit_s=100.0)


def _measure(name: str, step: Step, dry: bool) -> dict[str, Any]:
    programs = _programs(name, dry)
    command_buffers()  # those of making the weights
    begin = time.perf_counter()
    run = programs.prepare(step)
    compile_s = time.perf_counter() - begin
    took = seconds(run, batches=3, target_s=0.2)
    floor_bytes, floor_flops = floors(programs.config, step)
    floor = max(floor_bytes / copy_bandwidth(dry), floor_flops / matmul_rate(dry))
    dispatch = _dispatch_s(run)
    return {
        "s": took, "floor_s": floor, "share": floor / took, "bytes": floor_bytes, "flops": floor_flops,
        "host_dispatch_s": dispatch, "compile_s": compile_s, "kv_blocks": programs.blocks,
        "matmul_share": floor_flops / took / matmul_rate(dry), "command_buffers": command_buffers(),
    }  # fmt: skip


def floors(config: ModelConfig, step: Step) -> tuple[int, int]:
    """(bytes that must be read, FLOPs) of a step, its logits included."""
    leaves = jax.tree.leaves(model_for(config).leaves(config))
    read = sum(leaf.size for leaf in leaves if leaf.share)  # of a table that rows are taken from, almost nothing
    matmuls = matmul_flops(config, step.rows + step.tokens, step.bucket.sample_rows)
    cached = step.rows * step.context + step.tokens  # what the queries of the last layer see, one a row
    below = step.rows * step.context + step.tokens * (step.tokens + 1) // 2
    pairs = (config.num_layers - 1) * below + cached
    flops = int(matmuls) + 4 * config.num_heads * config.head_dim * pairs
    return 2 * read + size_of(config).kv_bytes_per_token(2) * cached, flops


class _Programs:
    """One model on the device: weights, a pool of KV pages, and the programs of the steps asked for."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self._params = device_params(config)
        weights = sum(leaf.nbytes for leaf in jax.tree.leaves(self._params))
        size = block_bytes(config, BLOCK, jnp.bfloat16)
        room = int(0.75 * memory_limit()) - weights - (3 << 30)  # temporaries of 8,192 tokens: about 1 GiB
        self.blocks = max(16, min(room // size, 64 * 4096 // BLOCK + 1))
        longest = min(LONGEST, config.context_length)
        settings = EngineConfig.from_settings(block_size=BLOCK, max_num_seqs=SLOTS, max_model_len=longest)
        geometry = Geometry.of(config, settings, jnp.bfloat16, self.blocks)
        placement = Placement.default()
        self._lowering = Lowering(geometry, self._params, placement, settings.runtime)
        order = np.random.default_rng(0).permutation(np.arange(1, self.blocks, dtype=np.int32))
        self._tables = np.resize(order, (SLOTS + 1, geometry.table_width))
        self._state = ModelState(allocate_cache(geometry, placement), jnp.asarray(self._tables))
        self._slots = init_slot_state(SLOTS, self._lowering.context, config.vocab_size)

    def prepare(self, step: Step) -> Any:
        """A function that runs the step once more and returns its tokens."""
        model = self._lowering.model_program(step.bucket).compile()
        sampler = self._lowering.sampler(step.bucket.sample_rows, Variant.GREEDY).compile()
        packed, lengths = self._packed(step), jnp.full(SLOTS + 1, step.context, jnp.int32)
        sample = np.zeros((len(SAMPLE_FIELDS), step.bucket.sample_rows), np.int32)
        sample[SAMPLE_FIELDS.index("slots")] = SLOTS

        def run() -> jax.Array:
            self._state, output = model(self._params, self._state, self._slots.tokens, lengths, packed)
            sampled, self._slots = sampler(output.logits, self._slots, sample)
            return sampled.tokens

        return run

    def _packed(self, step: Step) -> np.ndarray:
        width = self._lowering.table_width
        packed = np.zeros(packed_size(step.bucket, width), np.int32)
        views = unpack_model(packed, step.bucket, width)
        if step.rows:
            slots = np.arange(step.rows, dtype=np.int32)
            views["decode_slots"][:], views["decode_columns"][:] = slots, (step.context - 1) // BLOCK
            views["decode_blocks"][:] = self._tables[slots, (step.context - 1) // BLOCK]
        if step.tokens:
            views["tokens"][:] = np.random.default_rng(1).integers(0, self.config.vocab_size, step.tokens)
            views["slots"][:], views["offsets"][1:] = SLOTS - 1, step.tokens
            views["tables"][0] = self._tables[SLOTS - 1]
        return packed


@cache
def _programs(name: str, dry: bool) -> _Programs:
    _programs.cache_clear()  # one model on the device at a time
    return _Programs(tiny(MODELS[name]) if dry else MODELS[name])


def _dispatch_s(run: Any) -> float:
    """What the host spends on one step's two calls, while the device is free to run behind it."""
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        last = run()
        times.append(time.perf_counter() - begin)
        jax.block_until_ready(last)
    return sorted(times)[2]


def command_buffers() -> int | None:
    """Of the programs compiled since the last call; None where nothing was compiled, or nothing is dumped."""
    folder = os.environ.get("JAXSERVE_BENCH_DUMP")
    files = [path for path in Path(folder).rglob("*") if path.is_file()] if folder else []
    texts = [path.read_text() for path in files if path.name.endswith("thunk_sequence_after_thunk_passes.txt")]
    for path in files:
        path.unlink()
    return sum(text.count(" kCommandBuffer") for text in texts) if texts else None
