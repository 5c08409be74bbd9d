"""What a step brings back besides tokens: log-probabilities of sampled tokens and of prompts.

A new side output is a field of `core.plan.Wants`, a field of `core.plan.SideOutputs`, and this module: what is
dispatched for it beside the model and the sampler, and how its arrays become a row's data on the host.

    host      scoring_targets(plan)         dispatched: a scorer, the sampler's own log-probabilities
    device    PendingSideOutputs            copies to the host have begun
    host      collect(tokens) -> by row     `SideOutputs`, for the rows that want some
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from jaxserve.core.plan import Bucket, SideOutputs, StepPlan, TokenLogprobs
from jaxserve.runtime.sampling.logprobs import LogProbs
from jaxserve.runtime.sampling.sampler import Sampled


def scoring_targets(plan: StepPlan, bucket: Bucket) -> NDArray[np.int32] | None:  # [T]
    """The token to be scored after each prefill position, 0 where none is; None: no row wants its prompt scored."""
    if all(row.wants.prompt_logprobs is None for row in plan.prefills):
        return None
    targets = np.zeros(bucket.prefill_tokens, np.int32)
    begin = 0
    for row in plan.prefills:
        wanted = row.wants.prompt_targets
        targets[begin : begin + len(wanted)] = wanted
        begin += row.length
    return targets


class PendingSideOutputs:
    """Of a step whose programs are dispatched. `scores`: of the prefill positions, if `scoring_targets` named some."""

    def __init__(self, plan: StepPlan, places: Sequence[int], sampled: Sampled, scores: LogProbs | None) -> None:
        self._plan, self._places = plan, places
        wants = any(row.wants.logprobs is not None for row in plan.rows)
        self._sampled = sampled if wants and sampled.logprobs is not None else None
        self._scores = scores
        for leaf in jax.tree.leaves((self._sampled, scores)):
            leaf.copy_to_host_async()

    def collect(self) -> dict[int, SideOutputs]:
        """By row of the plan. Waits for the copies."""
        if self._sampled is None and self._scores is None:
            return {}
        logprobs, prompt_logprobs = self._logprobs(), self._prompt_logprobs()
        return {
            i: SideOutputs(logprobs.get(i, ()), prompt_logprobs.get(i, ()))
            for i in sorted(logprobs.keys() | prompt_logprobs.keys())
        }

    def _logprobs(self) -> dict[int, list[TokenLogprobs]]:
        if self._sampled is None:
            return {}
        arrays = jax.tree.map(np.asarray, self._sampled)
        return {
            i: [_position(arrays, self._places[i], row.wants.logprobs)]
            for i, row in enumerate(self._plan.rows)
            if row.wants.token and row.wants.logprobs is not None
        }

    def _prompt_logprobs(self) -> dict[int, list[TokenLogprobs]]:
        if self._scores is None:
            return {}
        scores = [np.asarray(array) for array in self._scores]
        found: dict[int, list[TokenLogprobs]] = {}
        begin = 0
        for i, row in enumerate(self._plan.prefills, start=len(self._plan.decodes)):
            wants = row.wants
            if wants.prompt_logprobs is not None:
                found[i] = [
                    _position((token, *(array[at] for array in scores)), None, wants.prompt_logprobs)
                    for at, token in enumerate(wants.prompt_targets, start=begin)
                ]
            begin += row.length
        return found


def _position(arrays: Sequence[Any], at: int | None, count: int) -> TokenLogprobs:
    """One position of (token, log-probability, rank, top ids, top log-probabilities)."""
    token, logprob, rank, top_ids, top = arrays if at is None else (array[at] for array in arrays)
    likeliest = tuple(zip(top_ids[:count].tolist(), top[:count].tolist(), strict=True))
    return TokenLogprobs(int(token), float(logprob), int(rank), likeliest)
