"""The executor that owns a device: parameters, K/V pages, per-slot state, and the compiled programs.

`submit` packs a plan and dispatches the model program. What it returns (`runtime.pending`) dispatches the sampler and
starts the copy of the sampled tokens to the host (`sample`), and blocks for that copy (`wait`). The tokens stay on the
device as well, as the next step's input.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxserve.core.errors import UnexpectedCompilation
from jaxserve.core.move_costs import MoveCosts
from jaxserve.core.plan import NO_BUCKET, Bucket, StepPlan
from jaxserve.core.sections import CacheConfig, RuntimeConfig
from jaxserve.core.step_record import Compilation
from jaxserve.parallel.placement import Placement
from jaxserve.runtime.batch import BatchBuilder
from jaxserve.runtime.geometry import Geometry
from jaxserve.runtime.kv_cache import allocate_cache
from jaxserve.runtime.offload.offload import Offload
from jaxserve.runtime.pending import PendingMoves, PendingStep
from jaxserve.runtime.profile import named, step_named
from jaxserve.runtime.programs.compilation import CompilationCounter
from jaxserve.runtime.programs.lowering import Lowering
from jaxserve.runtime.programs.program_set import ProgramSet, prefill_shape
from jaxserve.runtime.sampling.logprobs import LogProbs
from jaxserve.runtime.sampling.sampler import Processor, Sampled, SlotState, Variant, init_slot_state
from jaxserve.runtime.sampling.slots import SlotLoader
from jaxserve.runtime.side_outputs import scoring_targets
from jaxserve.runtime.steps import ModelOutput, ModelState

__all__ = ["ModelRunner", "Processor"]


NO_STEP = StepPlan(0, (), (), NO_BUCKET)


class ModelRunner:
    """Runs plans on the device, or the devices, of a placement.

    Args:
      params: the weights, which lie where `placement` puts them.
      processor: of logits, traced into the sampler.
    """

    lowering: ClassVar[type[Lowering]] = Lowering
    """What lowers the programs. Tests put a class here that lowers and compiles what is equal once a session."""

    def __init__(
        self,
        geometry: Geometry,
        params: Any,
        placement: Placement,
        *,
        cache: CacheConfig,
        runtime: RuntimeConfig,
        processor: Processor | None = None,
    ) -> None:
        self._geometry, self._params, self._placement, self._runtime = geometry, params, placement, runtime
        self._batch = BatchBuilder(geometry.num_slots, geometry.table_width, geometry.block_size)
        self._counter = CompilationCounter()
        self._num_steps = 0
        self.programs = ProgramSet(
            self.lowering(geometry, params, placement, runtime),
            geometry.buckets.all(),
            threads=runtime.compile_threads,
            moves=geometry.host_blocks + geometry.disk_blocks > 0,
            processor=processor,
        )
        self._offload = Offload(geometry, placement, self.programs.movers, cache)
        self._allocate()

    # --- a step -----------------------------------------------------------------------------------------------

    def submit(self, plan: StepPlan) -> PendingStep | PendingMoves:
        self._num_steps += 1
        with ExitStack() as step, self._watch():
            step.enter_context(step_named(self._num_steps))
            loads, history = self._offload.begin(self._state.cache, plan.moves), self.programs.processor is not None
            for admitted in plan.admitted:
                self._batch.load(admitted)
                if (row := self._slot_loader.row(admitted, history=history)) is not None:
                    self._slots = self.programs.loaders["load"](self._slots, np.int32(admitted.slot), *row)
            pending = self._run_model(plan) if plan.bucket.tokens else PendingMoves(plan, self._offload)
            if loads:
                self._state = self._state._replace(cache=self._offload.finish(self._state.cache, loads))
            pending.step = step.pop_all()
        return pending

    def _run_model(self, plan: StepPlan) -> PendingStep:
        bucket = self.programs.bucket_for(plan.bucket)
        with named("pack"):
            packed = self._batch.model_input(plan, bucket)
        with named("model", bucket):
            output = self._call_model(bucket, packed)
        return PendingStep(plan, bucket, partial(self._run_sampler, plan, bucket, output), self._offload)

    def _run_sampler(self, plan: StepPlan, bucket: Bucket, output: ModelOutput) -> tuple[Sampled, LogProbs | None]:
        """Sampled tokens, and scores of the prompts' where some are wanted."""
        variant = self._batch.variant(plan) if self.programs.processor is None else Variant.FULL
        with self._watch(), named("sample"):
            packed, targets = self._batch.sample_input(plan, bucket), scoring_targets(plan, bucket)
            sampler = self.programs.samplers[bucket.sample_rows, variant]
            sampled, self._slots = sampler(output.logits, self._slots, packed)
            return sampled, None if targets is None else self._call_scorer(bucket, output, targets)

    def _call_model(self, bucket: Bucket, packed: NDArray[np.int32]) -> ModelOutput:
        slots = self._slots
        self._state, output = self.programs.models[bucket](
            self._params, self._state, slots.tokens, slots.lengths, packed
        )  # fmt: skip
        return output

    def _call_scorer(self, bucket: Bucket, output: ModelOutput, targets: NDArray[np.int32]) -> LogProbs:
        scorer = self.programs.scorers[prefill_shape(bucket)]
        return scorer(self._params, self._state.cache[-1], output.prefilled, targets)

    @contextmanager
    def _watch(self) -> Iterator[None]:
        """Count the programs that a part of a step compiles; an error, if the settings say so."""
        before = self._counter.count
        with self._counter.watch():
            yield
        compiled = self._counter.count - before
        if compiled and self._runtime.on_compile_after_warmup == "error":
            raise UnexpectedCompilation(
                f"{compiled} programs were compiled by a step: a shape is missing from the buckets"
            )

    def reset(self) -> None:
        for leaf in jax.tree.leaves((self._state, self._slots)):
            leaf.delete()  # first, and whoever still refers to it: a GPU's memory does not hold two caches
        self._allocate()
        self._offload.reset()

    # --- between steps ----------------------------------------------------------------------------------------

    def rehearse(self, bucket: Bucket) -> None:
        """Run a bucket's programs once, on rows that write what is scratch alone. Nothing may be under way.

        An executable's first run makes its code and memory ready, loop by loop, which takes longer than most steps; and
        a device whose memory does not hold the bucket's step says so here."""
        rows, sample_input = self._batch.rehearsal_input(bucket), self._batch.sample_input(NO_STEP, bucket)
        output = self._call_model(bucket, rows)
        for variant in Variant:
            sampler = self.programs.samplers[bucket.sample_rows, variant]
            _, self._slots = sampler(output.logits, self._slots, sample_input)
        if bucket.prefill_tokens:
            jax.block_until_ready(self._call_scorer(bucket, output, np.zeros(bucket.prefill_tokens, np.int32)))
        jax.block_until_ready((self._state, self._slots))

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
    def compilations_after_warmup(self) -> int:
        """Programs compiled by a step, which should have found its programs ready. 0, or a shape is missing."""
        return self._counter.count

    @property
    def compilations(self) -> list[Compilation]:
        """The last of these, oldest first."""
        return list(self._counter.last)

    @property
    def kv_bytes(self) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._state.cache))

    # --- state ----------------------------------------------------------------------------------------------

    def _allocate(self) -> None:
        geometry, place = self._geometry, self._placement
        slots, vocab_size = geometry.num_slots, geometry.model.vocab_size
        tables = place.make(lambda: jnp.zeros((slots + 1, geometry.table_width), jnp.int32))
        self._state = ModelState(allocate_cache(geometry, place), tables)
        self._slots: SlotState = place.make(lambda: init_slot_state(slots, geometry.context, vocab_size))
        self._slot_loader = SlotLoader(geometry.context, vocab_size)
