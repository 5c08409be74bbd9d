"""The programs of one engine: which there are, in which order they are made, and which are there by now.

table       what it holds                                   by
models      the forward pass of a step                      bucket
samplers    logits to tokens                                (rows, variant)
scorers     log-probabilities of prompts                    (prefill tokens, prefill rows)
loaders     what loads a slot on admission                  "load"
movers      KV blocks out of the cache, and into it         ("gather" or "scatter", blocks)

With `warmup = "progressive"` the two widest buckets' programs come first; until the rest are there, a step runs in the
smallest bucket that is.
"""

from collections.abc import Callable
from typing import Any

from jaxserve.core.plan import Bucket
from jaxserve.runtime.offload.block_movers import mover_keys
from jaxserve.runtime.programs.lowering import Lowering
from jaxserve.runtime.programs.table import ProgramTable
from jaxserve.runtime.sampling.sampler import Processor, Variant

Key = tuple[ProgramTable, Any]
"""A program: its table, and what it is there by."""


class ProgramSet:
    """Nothing is compiled before `compile`.

    Args:
      buckets: every shape that a step can take, the two that can serve anything first.
      moves: whether there are tiers to move blocks to.
      processor: of logits, traced into the samplers.
    """

    def __init__(
        self, lowering: Lowering, buckets: list[Bucket], *, threads: int, moves: bool, processor: Processor | None
    ) -> None:
        self._lowering, self._buckets, self._threads, self._moves = lowering, buckets, threads, moves
        self._processor = processor
        self.models = ProgramTable(lambda bucket: lowering.model_program(bucket).compile(), threads)
        self.samplers = self._sampler_table(processor)
        self.scorers = ProgramTable(lambda key: lowering.scorer(*key).compile(), threads)
        self.loaders = ProgramTable(lambda _: lowering.slot_loader().compile(), 1)
        self.movers = ProgramTable(lambda key: lowering.block_mover(*key).compile(), threads)

    def all(self) -> list[Key]:
        """Every program, those of `serving` first."""
        return self._of(self._buckets)

    def serving(self) -> list[Key]:
        """The programs that suffice to serve: those of the two widest buckets."""
        return self._of(self._buckets[:2])

    def _of(self, buckets: list[Bucket]) -> list[Key]:
        """A bucket's model comes after what samples and scores its rows, so that a bucket with a model is whole."""
        keys: list[Key] = [(self.loaders, "load")]
        if self._moves:
            keys += [(self.movers, key) for key in mover_keys()]
        for bucket in buckets:
            keys += [(self.samplers, (bucket.sample_rows, variant)) for variant in Variant]
            if bucket.prefill_tokens:
                keys.append((self.scorers, prefill_shape(bucket)))
            keys.append((self.models, bucket))
        return list(dict.fromkeys(keys))

    def compile(self, keys: list[Key], progress: Callable[[], object] = lambda: None) -> None:
        for table in (self.loaders, self.movers, self.models, self.samplers, self.scorers):
            table.compile([key for owner, key in keys if owner is table], progress)

    @property
    def ready(self) -> list[Bucket]:
        """Buckets that a step can run in by now."""
        return [bucket for bucket in self._buckets if bucket in self.models]

    def bucket_for(self, bucket: Bucket) -> Bucket:
        """The bucket if it is ready, else the ready one of fewest tokens that can take its rows."""
        if bucket in self.models:
            return bucket
        able = [b for b in self.ready if all(have >= need for have, need in zip(b, bucket, strict=True))]
        return min(able, key=lambda b: b.tokens)

    # --- sampling ---------------------------------------------------------------------------------------------

    @property
    def processor(self) -> Processor | None:
        return self._processor

    def use_processor(self, processor: Processor | None) -> None:
        """Another processor of logits, or none: compiles what samples through it. Nothing may be under way."""
        samplers = self._sampler_table(processor)
        samplers.adopt(self.samplers, lambda key: key[1] is not Variant.FULL)
        samplers.compile([key for table, key in self.all() if table is self.samplers])
        self.samplers, self._processor = samplers, processor

    def _sampler_table(self, processor: Processor | None) -> ProgramTable:
        build = self._lowering.sampler
        return ProgramTable(lambda key: build(*key, processor).compile(), self._threads)


def prefill_shape(bucket: Bucket) -> tuple[int, int]:
    """Which program scores a bucket's prompts."""
    return bucket.prefill_tokens, bucket.prefill_rows
