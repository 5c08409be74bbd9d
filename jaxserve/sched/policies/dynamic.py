"""Dynamic batching: a batch starts when `max_batch_size` requests wait, or the oldest has waited `batch_timeout_s`.

As in Triton's and TensorFlow Serving's batchers. It bounds only the wait for a full batch: while a batch runs, no
sequence is added, and the slots of those that have ended stay empty until the last one ends.
"""

from jaxserve.sched.policies.policy import Load, PolicyContext
from jaxserve.sched.policies.static import Batches


class Dynamic(Batches):
    def __init__(self, context: PolicyContext) -> None:
        super().__init__(context, context.config.max_batch_size)
        self._timeout_s = context.config.batch_timeout_s

    def full(self, load: Load) -> bool:
        return super().full(load) or load.now >= load.oldest_s + self._timeout_s

    def wake_s(self, load: Load) -> float | None:
        return load.oldest_s + self._timeout_s if load.waiting and not load.running else None
