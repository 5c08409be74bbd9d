"""A step that was dispatched, on its way back to the host."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from jaxserve.core.plan import Bucket, Masks, StepPlan, StepResult
from jaxserve.runtime.offload.offload import Offload
from jaxserve.runtime.profile import named
from jaxserve.runtime.sampling.logprobs import LogProbs
from jaxserve.runtime.sampling.sampler import Sampled
from jaxserve.runtime.side_outputs import PendingSideOutputs


class PendingStep:
    """A step whose model program is dispatched. `dispatch`: its sampler and what scores its prompts.

    `step` is its name in profiles, from the moment it was submitted until its sampler is dispatched.
    """

    step: AbstractContextManager[object] = nullcontext()

    def __init__(
        self,
        plan: StepPlan,
        bucket: Bucket,
        dispatch: Callable[[], tuple[Sampled, LogProbs | None]],
        offload: Offload,
    ) -> None:
        self._plan, self._bucket, self._dispatch, self._offload = plan, bucket, dispatch, offload

    def sample(self, masks: Masks | None = None) -> None:
        assert masks is None, "no sampler takes masks yet"
        plan, decode_rows = self._plan, self._bucket.decode_rows
        places = [*range(len(plan.decodes)), *range(decode_rows, decode_rows + len(plan.prefills))]
        with self.step:
            sampled, scores = self._dispatch()
        self._tokens = sampled.tokens
        self._tokens.copy_to_host_async()
        self._side = PendingSideOutputs(plan, places, sampled, scores)
        self._counts = np.array([row.wants.token for row in plan.rows], np.int32)
        self._places = np.array(places, np.int32)[self._counts > 0]

    def wait(self) -> StepResult:
        with named("wait"):
            tokens = np.asarray(self._tokens)[self._places]
        return StepResult(tokens, self._counts, self._side.collect(), self._offload.settled())


class PendingMoves:
    """A step without rows; one without moves either waits a moment for those in flight. `step`: see `PendingStep`."""

    step: AbstractContextManager[object] = nullcontext()

    def __init__(self, plan: StepPlan, offload: Offload) -> None:
        self._offload = offload
        self._idle = not plan.moves

    def sample(self, masks: Masks | None = None) -> None:
        """There is nothing to sample: its name in profiles ends here."""
        with self.step:
            pass

    def wait(self) -> StepResult:
        nothing = np.zeros(0, np.int32)
        return StepResult(nothing, nothing, moved=self._offload.settled(wait=self._idle))
