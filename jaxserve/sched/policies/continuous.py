"""Continuous batching: sequences join and leave at every step; whole prompts go first (Orca, Yu et al. 2022).

A step is either prompts alone, as many whole ones as fit, or decodes alone: decodes wait while a prompt runs.
A prompt longer than `max_num_batched_tokens` is split, since no step could hold it.
"""

from jaxserve.sched.policies.policy import BatchPolicy, Load, Mode, PolicyContext, StepLimits


class Continuous(BatchPolicy):
    def __init__(self, context: PolicyContext) -> None:
        tokens = context.config.max_num_batched_tokens
        self._limits = StepLimits(tokens, tokens, context.config.max_num_seqs, Mode.PREFILL_FIRST, no_split=True)

    def limits(self, load: Load) -> StepLimits:
        return self._limits

    def prefill_tokens(self, rows: int, context: int) -> int:
        return self._limits.tokens
