"""Each program of an engine, lowered from shapes alone: for the device at hand, or for one that is not here.

The runner compiles what comes out for its own device; `bench.compile` and `jaxserve plan` compile the very same for a
GPU that this machine need not have.
"""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxserve.core.errors import ConfigError
from jaxserve.core.plan import Bucket
from jaxserve.core.sections import RuntimeConfig
from jaxserve.models.registry import model_for
from jaxserve.parallel.placement import Placement, abstract
from jaxserve.runtime.batch import SAMPLE_FIELDS, packed_size
from jaxserve.runtime.geometry import Geometry
from jaxserve.runtime.kv_cache import abstract_cache
from jaxserve.runtime.offload.block_movers import lower_mover
from jaxserve.runtime.sampling.sampler import Processor, SlotState, Variant, init_slot_state, load_slot
from jaxserve.runtime.sampling.slots import abstract_row
from jaxserve.runtime.steps import ModelState, Prefilled, model_step, sample_step, score_step
from kernels_pallas.paged_attention import UnsupportedByBackend


class Lowering:
    """Lowers the programs of one model under one configuration; `.compile()` of what is returned does the rest.

    Args:
      params: the parameters, as arrays or as `jax.ShapeDtypeStruct`s.
      placement: where parameters and state lie.
    """

    def __init__(self, geometry: Geometry, params: Any, placement: Placement, runtime: RuntimeConfig) -> None:
        config = geometry.model
        self._model, self._config, self._placement = model_for(config), config, placement
        self._attention = {
            "backend": runtime.attention_backend,
            "interpret": runtime.attention_interpret,
            "debug": runtime.debug_tables,
        }
        self._dtype = geometry.dtype
        self.table_width, self.context = geometry.table_width, geometry.context
        self.params = placement.abstract_params(params, self._model.leaf_axes(config))
        tables = jax.ShapeDtypeStruct(
            (geometry.num_slots + 1, self.table_width), jnp.int32, sharding=placement.replicated
        )
        self.state = ModelState(abstract_cache(geometry, placement.pages), tables)
        slots = jax.eval_shape(partial(init_slot_state, geometry.num_slots, self.context, config.vocab_size))
        self.slots: SlotState = abstract(slots, placement.replicated)

    def model_program(self, bucket: Bucket) -> jax.stages.Lowered:
        """Raises ConfigError where the attention backend that was asked for cannot compute this model."""
        step = partial(
            model_step, model=self._model, config=self._config, bucket=bucket, attention=self._attention
        )  # fmt: skip
        packed = self._shape((packed_size(bucket, self.table_width),), jnp.int32)
        step = _named(step, f"model_{bucket}")
        try:
            return jax.jit(step, donate_argnums=1).lower(
                self.params, self.state, self.slots.tokens, self.slots.lengths, packed
            )
        except UnsupportedByBackend as error:
            raise ConfigError(f"attention_backend = {self._attention['backend']!r} cannot work: {error}") from error

    def sampler(self, rows: int, variant: Variant, processor: Processor | None = None) -> jax.stages.Lowered:
        step = partial(sample_step, variant=variant, processor=processor if variant is Variant.FULL else None)
        logits = self._shape((rows, self._config.vocab_size), jnp.float32)
        packed = self._shape((len(SAMPLE_FIELDS), rows), jnp.int32)
        step = _named(step, f"sample_{rows}_{variant.name.lower()}")
        return jax.jit(step, donate_argnums=1).lower(logits, self.slots, packed)

    def scorer(self, tokens: int, rows: int) -> jax.stages.Lowered:
        step = partial(score_step, model=self._model, config=self._config, attention=self._attention)
        prefilled = Prefilled(
            self._shape((tokens, self._config.hidden_size), self._dtype),
            *(self._shape(shape, jnp.int32) for shape in ((tokens,), (rows, self.table_width), (rows + 1,), (rows,))),
        )
        step = _named(step, f"score_{tokens}")
        targets = self._shape((tokens,), jnp.int32)
        return jax.jit(step).lower(self.params, self.state.cache[-1], prefilled, targets)

    def slot_loader(self) -> jax.stages.Lowered:
        row = abstract(abstract_row(self.context), self._placement.step_input)
        return jax.jit(load_slot, donate_argnums=0).lower(self.slots, self._shape((), jnp.int32), *row)

    def block_mover(self, name: str, blocks: int) -> jax.stages.Lowered:
        """`name`: "gather" or "scatter", of this number of KV blocks: see `runtime.offload.block_movers`."""
        return lower_mover(self.state.cache, name, blocks, self._placement)

    def _shape(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self._placement.step_input)


def _named(step: partial[Any], name: str) -> partial[Any]:
    """The step under the name that its program has in profiles, where it is `jit_NAME`."""
    step.__name__ = re.sub(r"\W", "_", name)  # type: ignore[attr-defined]
    return step
