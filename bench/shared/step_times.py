"""Where a step's wall time goes, seen from outside the executor."""

import time
from typing import Any


class StepTimes:
    """Wraps an executor and adds up where a step's wall time goes: packing and dispatch, and waiting."""

    def __init__(self, executor: Any) -> None:
        self._executor = executor
        self.submit_s = self.wait_s = 0.0
        self.steps = self.real_tokens = self.padded_tokens = 0

    def submit(self, plan: Any) -> Any:
        begin = time.perf_counter()
        pending = self._executor.submit(plan)
        self.submit_s += time.perf_counter() - begin
        self.steps += 1
        self.real_tokens += plan.num_tokens
        self.padded_tokens += plan.bucket.tokens
        return _TimedPending(pending, self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)


class _TimedPending:
    def __init__(self, pending: Any, times: StepTimes) -> None:
        self._pending, self._times = pending, times

    def sample(self, masks: Any = None) -> None:
        begin = time.perf_counter()
        self._pending.sample(masks)
        self._times.submit_s += time.perf_counter() - begin

    def wait(self) -> Any:
        begin = time.perf_counter()
        result = self._pending.wait()
        self._times.wait_s += time.perf_counter() - begin
        return result
