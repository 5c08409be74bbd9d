"""Stall-free batching: every decode first, the rest of the step's tokens to prompt chunks.

A long prompt costs the others at most one budget's worth of step time, again and again, instead of one long gap
(Sarathi-Serve, Agrawal et al. 2024).
"""

from collections.abc import Iterable

from jaxserve.sched.policies.policy import BatchPolicy, Load, PolicyContext, StepLimits


class Chunked(BatchPolicy):
    def __init__(self, context: PolicyContext) -> None:
        config = context.config
        chunk = config.chunk_size or config.max_num_batched_tokens
        self._limits = StepLimits(config.max_num_batched_tokens, chunk, config.max_num_seqs)

    def limits(self, load: Load) -> StepLimits:
        return self._limits

    def prefill_tokens(self, rows: int, context: int) -> int:
        return max(self._limits.tokens - rows, 0)

    def most_of_one(self, pending: Iterable[int], prompts: int) -> int:
        return min(self._limits.chunk, prompts)
