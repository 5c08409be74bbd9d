"""What runs a step: the device (`runtime.runner.ModelRunner`), or a cost model on a virtual clock (`sim.executor`).

    pending = executor.submit(plan)   dispatches the model program; returns at once
    pending.sample(masks)             dispatches the sampler: what it takes may depend on the step before this one
    result  = pending.wait()          blocks until the step's tokens are on the host

Each step is submitted, sampled and waited for once, in this order, and steps keep the order of their plans. A plan is
plain data: an executor may keep it, or send it to another process.
"""

from typing import Protocol

from jaxserve.core.plan import Masks, StepPlan, StepResult


class Pending(Protocol):
    def sample(self, masks: Masks | None = None) -> None:
        """`masks`: the tokens that each row may sample; None: all."""
        ...

    def wait(self) -> StepResult: ...


class Executor(Protocol):
    def submit(self, plan: StepPlan) -> Pending: ...

    def reset(self) -> None:
        """After a failed step: forget all K/V and per-slot state, and be ready for new sequences."""
        ...
