"""Whoever runs a step: the device (`runtime.runner.ModelRunner`) or a cost model on a virtual clock.

`submit` dispatches and returns at once; `wait` blocks until that step's tokens are on the host. Steps run in the order
they were submitted, and an executor reads the plan's sequences only inside `submit`.
"""

from typing import Protocol

from jaxserve.core.plan import StepPlan, StepResult


class Pending(Protocol):
    def wait(self) -> StepResult: ...


class Executor(Protocol):
    def submit(self, plan: StepPlan) -> Pending: ...

    def reset(self) -> None:
        """After a failed step: forget all K/V and per-slot state, and be ready for new sequences."""
        ...
