"""A step on its way back: device arrays whose copy to the host has been started, and what they become."""

from typing import Any

import jax
import numpy as np

from jaxserve.core.plan import Bucket, StepPlan, StepResult, TokenLogprobs
from jaxserve.runtime.offload.offload import Offload
from jaxserve.runtime.profile import named
from jaxserve.runtime.sampling.sampler import Sampled

PromptScores = tuple[
    jax.Array, jax.Array, jax.Array, jax.Array
]  # logprobs [T], ranks [T], top ids, top logprobs [T, 20]


class PendingStep:
    """What `ModelRunner.submit` returns. It reads the plan's parameters now and its arrays in `wait`."""

    def __init__(
        self, plan: StepPlan, bucket: Bucket, sampled: Sampled, scores: PromptScores | None, offload: Offload
    ) -> None:
        self._offload = offload
        self._rows = (*plan.decodes, *plan.prefills)
        self._num_decodes = len(plan.decodes)
        self._index = [*range(self._num_decodes), *range(bucket.decode_rows, bucket.decode_rows + len(plan.prefills))]
        self._targets = [self._prompt_targets(row) for row in self._rows]
        wants = any(row.sequence.params.logprobs is not None and row.samples for row in self._rows)
        self._sampled = sampled if wants else sampled._replace(logprobs=None)
        self._scores = scores
        for leaf in jax.tree.leaves((self._sampled if wants else sampled.tokens, scores)):
            leaf.copy_to_host_async()

    def wait(self) -> StepResult:
        with named("wait"):
            tokens = np.asarray(self._sampled.tokens)[self._index]
        return StepResult(tokens, self._logprobs(tokens), self._prompt_logprobs(), self._offload.settled())

    @staticmethod
    def _prompt_targets(row: Any) -> list[int]:
        if row.sequence.params.prompt_logprobs is None or row.start + 1 >= row.sequence.num_prompt:
            return []
        end = min(row.start + row.length + 1, row.sequence.num_prompt)
        return row.sequence.tokens[row.start + 1 : end]

    def _logprobs(self, tokens: np.ndarray) -> dict[int, TokenLogprobs] | None:
        if self._sampled.logprobs is None:
            return None
        _, chosen, ranks, top_ids, top = jax.tree.map(np.asarray, self._sampled)
        found: dict[int, TokenLogprobs] = {}
        for i, row in enumerate(self._rows):
            count = row.sequence.params.logprobs
            if count is not None and row.samples:
                at = self._index[i]
                found[i] = _position(int(tokens[i]), chosen[at], ranks[at], top_ids[at], top[at], count)
        return found

    def _prompt_logprobs(self) -> dict[int, list[TokenLogprobs]] | None:
        if self._scores is None:
            return None
        logprobs, ranks, top_ids, top = (np.asarray(array) for array in self._scores)
        found: dict[int, list[TokenLogprobs]] = {}
        begin = 0
        for i, row in enumerate(self._rows[self._num_decodes :], start=self._num_decodes):
            if self._targets[i]:
                count = row.sequence.params.prompt_logprobs or 0
                found[i] = [
                    _position(token, logprobs[at], ranks[at], top_ids[at], top[at], count)
                    for at, token in enumerate(self._targets[i], start=begin)
                ]
            begin += row.length
        return found


class PendingMoves:
    """A step without rows; one without moves either waits a moment for those under way."""

    def __init__(self, plan: StepPlan, offload: Offload) -> None:
        self._offload = offload
        self._idle = not plan.moves

    def wait(self) -> StepResult:
        return StepResult(np.zeros(0, np.int32), moved=self._offload.settled(wait=self._idle))


def _position(token: int, logprob: Any, rank: Any, top_ids: Any, top: Any, count: int) -> TokenLogprobs:
    likeliest = tuple(zip(top_ids[:count].tolist(), top[:count].tolist(), strict=True))
    return TokenLogprobs(token, float(logprob), int(rank), likeliest)
