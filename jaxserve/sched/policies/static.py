"""Static batching: wait for `batch_size` requests, run them until the last one has ended, take the next ones.

What a server without continuous batching does, for comparisons. A batch also starts when no more requests can come
(`Load.expects_more`). A server always expects more: there a batch that does not fill waits on.
"""

from jaxserve.core.step_record import ScheduledStep
from jaxserve.sched.policies.policy import BatchPolicy, Load, Mode, PolicyContext, StepLimits


class Batches(BatchPolicy):
    """One closed batch after another, of at most `size`; `full` says when one may start."""

    def __init__(self, context: PolicyContext, size: int) -> None:
        self._tokens = context.config.max_num_batched_tokens
        self.size = min(size, context.config.max_num_seqs)
        self._places = 0
        """Members of the current batch that still have to be admitted, the preempted ones included."""

    def full(self, load: Load) -> bool:
        """Whether the waiting sequences make a batch."""
        return len(load.waiting) >= self.size or not load.expects_more

    def limits(self, load: Load) -> StepLimits:
        if not load.running and not self._places and load.waiting and self.full(load):
            self._places = min(self.size, len(load.waiting))
        self._places = min(self._places, len(load.waiting))
        return StepLimits(self._tokens, self._tokens, self._places, Mode.PREFILL_FIRST, no_split=True)

    def prefill_tokens(self, rows: int, context: int) -> int:
        return self._tokens

    def planned(self, step: ScheduledStep) -> None:
        self._places += len(step.preempted) - len(step.admitted)


class Static(Batches):
    def __init__(self, context: PolicyContext) -> None:
        super().__init__(context, context.config.batch_size)
