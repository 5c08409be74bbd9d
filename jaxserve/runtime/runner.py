"""The executor that owns a device: parameters, K/V pages, per-slot state, and the compiled programs.

`submit` packs a plan, dispatches the model program and the sampler, starts the copy of the sampled tokens to the host,
and returns; the tokens stay on the device as the next step's input. `wait` blocks for that copy.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxserve.core.errors import UnexpectedCompilation
from jaxserve.core.plan import Bucket, StepPlan
from jaxserve.core.sections import CacheConfig, RuntimeConfig
from jaxserve.core.step_record import Compilation
from jaxserve.models.config import ModelConfig
from jaxserve.models.decoder import Decoder
from jaxserve.runtime.batch import BatchBuilder
from jaxserve.runtime.block_movers import mover_keys
from jaxserve.runtime.kv_cache import allocate_cache, pages_dtype
from jaxserve.runtime.lowering import Lowering
from jaxserve.runtime.offload import Offload
from jaxserve.runtime.profile import named, step_named
from jaxserve.runtime.programs import CompilationCounter, ProgramTable, smallest_holding
from jaxserve.runtime.results import PendingMoves, PendingStep, PromptScores
from jaxserve.runtime.sampler import Processor, SlotState, Variant, choose_variant, init_slot_state
from jaxserve.runtime.slots import SlotLoader
from jaxserve.runtime.steps import ModelState, Prefilled
from jaxserve.sched.buckets import BucketTable
from jaxserve.sched.move_costs import MoveCosts

__all__ = ["ModelRunner", "Processor"]


class ModelRunner:
    """Runs plans on one device.

    Args:
      num_blocks: KV blocks, the scratch block included.
      max_len: tokens of the longest sequence.
      host_blocks, disk_blocks: sizes of the offload tiers; 0: none.
      processor: of logits, traced into the sampler.
    """

    def __init__(
        self,
        model: Decoder,
        config: ModelConfig,
        params: Any,
        *,
        cache: CacheConfig,
        runtime: RuntimeConfig,
        buckets: BucketTable,
        num_blocks: int,
        num_slots: int,
        max_len: int,
        host_blocks: int = 0,
        disk_blocks: int = 0,
        processor: Processor | None = None,
    ) -> None:
        self._config, self._params = config, params
        self._cache_config, self._runtime = cache, runtime
        self._num_blocks, self._num_slots = num_blocks, num_slots
        self._buckets = buckets.all()
        self._processor = processor
        self._device = jax.tree.leaves(params)[0].device
        self._dtype = jax.tree.leaves(params)[0].dtype
        self._lowering = lowering = Lowering(
            model, config, params, cache=cache, runtime=runtime, num_blocks=num_blocks, num_slots=num_slots,
            max_len=max_len,
        )  # fmt: skip
        self._table_width, self._context = lowering.table_width, lowering.context
        self._batch = BatchBuilder(num_slots, self._table_width, cache.block_size)
        self._counter = CompilationCounter()
        self._num_steps = 0
        threads = runtime.compile_threads
        self._models = ProgramTable(lambda bucket: lowering.model_program(bucket).compile(), threads)
        self._samplers = self._sampler_table(processor)
        self._scorers = ProgramTable(lambda key: lowering.scorer(*key).compile(), threads)
        self._loaders = ProgramTable(lambda _: lowering.slot_loader().compile(), 1)
        self._movers = ProgramTable(lambda key: lowering.block_mover(*key).compile(), threads)
        self._offload = Offload(cache, lowering.state.cache, self._movers, self._device, host_blocks, disk_blocks)
        self._offloads = host_blocks + disk_blocks > 0
        self._allocate()

    # --- programs ---------------------------------------------------------------------------------------------

    def program_keys(self) -> list[tuple[ProgramTable, Any]]:
        """Every program, those that can serve anything first; a bucket's model after what samples and scores its rows,
        so that a bucket with a model is whole."""
        keys: list[tuple[ProgramTable, Any]] = [(self._loaders, "load")]
        if self._offloads:
            keys += [(self._movers, key) for key in mover_keys()]
        for bucket in self._buckets:
            keys += [(self._samplers, (bucket.sample_rows, variant)) for variant in Variant]
            if bucket.prefill_tokens:
                keys.append((self._scorers, _prefill_shape(bucket)))
            keys.append((self._models, bucket))
        return list(dict.fromkeys(keys))

    @property
    def num_serving_programs(self) -> int:
        """How many of `program_keys` suffice to serve: those of the two widest buckets."""
        wide = set(self._buckets[:2])
        rows, prefills = {b.sample_rows for b in wide}, {_prefill_shape(b) for b in wide}
        return sum(
            table in (self._loaders, self._movers)
            or (table is self._models and key in wide)
            or (table is self._samplers and key[0] in rows)
            or (table is self._scorers and key in prefills)
            for table, key in self.program_keys()
        )

    def compile(self, keys: list[tuple[ProgramTable, Any]], progress: Callable[[Any], None] = lambda key: None) -> None:
        for table in (self._loaders, self._movers, self._models, self._samplers, self._scorers):
            table.compile([key for owner, key in keys if owner is table], progress)

    @property
    def ready(self) -> list[Bucket]:
        """Buckets that a step can run in by now."""
        return [bucket for bucket in self._buckets if bucket in self._models]

    def rehearse(self, bucket: Bucket) -> None:
        """Run a bucket's programs once, without rows: only what is scratch is written. Nothing may be under way.

        An executable's first run makes its code and memory ready, which takes longer than most steps; and a device
        whose memory does not hold the bucket's step says so here."""
        plan = StepPlan(0, (), (), bucket)
        model_input, sample_input = self._batch.model_input(plan, bucket), self._batch.sample_input(plan, bucket)
        self._state, output = self._models[bucket](self._params, self._state, self._slots.tokens, model_input)
        for variant in Variant:
            sampler = self._samplers[bucket.sample_rows, variant]
            _, self._slots = sampler(output.logits, self._slots, sample_input)
        if bucket.prefill_tokens:
            targets = np.zeros(bucket.prefill_tokens, np.int32)
            scorer = self._scorers[_prefill_shape(bucket)]
            jax.block_until_ready(scorer(self._params, self._state.cache[-1], output.prefilled, targets))
        jax.block_until_ready((self._state, self._slots))

    def _sampler_table(self, processor: Processor | None) -> ProgramTable:
        build = self._lowering.sampler
        return ProgramTable(lambda key: build(*key, processor).compile(), self._runtime.compile_threads)

    @property
    def processor(self) -> Processor | None:
        return self._processor

    def use_processor(self, processor: Processor | None) -> None:
        """Another processor of logits, or none: compiles what samples through it. Nothing may be under way."""
        samplers = self._sampler_table(processor)
        samplers.adopt(self._samplers, lambda key: key[1] is not Variant.FULL)
        samplers.compile([key for table, key in self.program_keys() if table is self._samplers])
        self._samplers, self._processor = samplers, processor

    @property
    def compilations_after_warmup(self) -> int:
        """Programs compiled by a step, which should have found its programs ready. 0, or a shape is missing."""
        return self._counter.count

    @property
    def compilations(self) -> list[Compilation]:
        """The last of these, oldest first."""
        return list(self._counter.last)

    # --- the executor -----------------------------------------------------------------------------------------

    def submit(self, plan: StepPlan) -> PendingStep | PendingMoves:
        self._num_steps += 1
        before = self._counter.count
        with self._counter.watch(), step_named(self._num_steps):
            pending = self._dispatch(plan)
        compiled = self._counter.count - before
        if compiled and self._runtime.on_compile_after_warmup == "error":
            raise UnexpectedCompilation(
                f"{compiled} programs were compiled by a step: a shape is missing from the buckets"
            )
        return pending

    def _dispatch(self, plan: StepPlan) -> PendingStep | PendingMoves:
        loads = self._offload.begin(self._state.cache, plan.moves)
        for sequence in plan.admitted:
            self._batch.load(sequence)
            if (row := self._slot_loader.row(sequence)) is not None:
                self._slots = self._loaders["load"](self._slots, np.int32(sequence.slot), *row)
        pending = self._run_rows(plan) if plan.bucket.tokens else PendingMoves(plan, self._offload)
        if loads:
            self._state = self._state._replace(cache=self._offload.finish(self._state.cache, loads))
        return pending

    def _run_rows(self, plan: StepPlan) -> PendingStep:
        bucket = smallest_holding(plan.bucket, self._models.__contains__, self._buckets)
        with named("pack"):
            model_input, sample_input = self._batch.model_input(plan, bucket), self._batch.sample_input(plan, bucket)
        with named("model", bucket):
            self._state, output = self._models[bucket](self._params, self._state, self._slots.tokens, model_input)
        with named("sample"):
            sampled, self._slots = self._samplers[bucket.sample_rows, self._variant(plan)](
                output.logits, self._slots, sample_input
            )
        return PendingStep(plan, bucket, sampled, self._score(plan, bucket, output.prefilled), self._offload)

    def reset(self) -> None:
        for leaf in jax.tree.leaves((self._state, self._slots)):
            leaf.delete()  # first, and whoever still refers to it: a GPU's memory does not hold two caches
        self._allocate()
        self._offload.reset()

    def measure_moves(self) -> MoveCosts:
        """What moving a block takes on this machine; once, when nothing runs."""
        costs, cache = self._offload.measure(self._state.cache)
        self._state = self._state._replace(cache=cache)
        return costs

    def close(self) -> None:
        """Remove what is on the disk, and give its folder free."""
        self._offload.close()

    def update_params(self, params: Any) -> None:
        """New weights of the same shapes and types, already on the device. Nothing may be under way."""
        self._params = params

    @property
    def params(self) -> Any:
        return self._params

    @property
    def kv_bytes(self) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._state.cache))

    def _variant(self, plan: StepPlan) -> Variant:
        if self._processor is not None:
            return Variant.FULL
        rows = (*plan.decodes, *plan.prefills)
        return choose_variant([row.sequence.params for row in rows if row.samples])

    def _score(self, plan: StepPlan, bucket: Bucket, prefilled: Prefilled) -> PromptScores | None:
        if all(row.sequence.params.prompt_logprobs is None for row in plan.prefills):
            return None
        targets = np.zeros(bucket.prefill_tokens, np.int32)
        begin = 0
        for row in plan.prefills:
            following = row.sequence.tokens[row.start + 1 : row.start + row.length + 1]
            targets[begin : begin + len(following)] = following
            begin += row.length
        scorer = self._scorers[_prefill_shape(bucket)]
        return scorer(self._params, self._state.cache[-1], prefilled, targets)

    # --- state ----------------------------------------------------------------------------------------------

    def _allocate(self) -> None:
        config = self._cache_config
        dtype = pages_dtype(config, self._dtype)
        cache = allocate_cache(self._config, self._num_blocks, config.block_size, dtype, self._device)
        with jax.default_device(self._device):
            tables = jnp.zeros((self._num_slots + 1, self._table_width), jnp.int32)
            self._slots: SlotState = init_slot_state(self._num_slots, self._context, self._config.vocab_size)
        self._state = ModelState(cache, tables)
        self._slot_loader = SlotLoader(self._context, self._config.vocab_size)


def _prefill_shape(bucket: Bucket) -> tuple[int, int]:
    """Which program scores a bucket's prompts."""
    return bucket.prefill_tokens, bucket.prefill_rows
