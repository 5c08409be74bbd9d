"""Guards against long prompts: one of them does not take the whole step, and several of them progress equally."""

from collections.abc import Iterable

from jaxserve.core.sections import SchedulerConfig
from jaxserve.core.sequence import Sequence


class LongPromptGuard:
    """For one step. A prompt with more than `long_prefill_token_threshold` tokens left is long: it takes at most that
    many tokens, and an equal share of the step when several are under way; at most `max_long_partial_prefills` run."""

    def __init__(self, config: SchedulerConfig, begun: Iterable[Sequence], budget: int) -> None:
        self._threshold = config.long_prefill_token_threshold
        self._places = config.max_long_partial_prefills
        self._cap = budget
        if self._threshold is not None:
            longs = sum(self._is_long(sequence) for sequence in begun)
            self._cap = max(min(self._threshold, budget // max(longs, 1)), 1)

    def _is_long(self, sequence: Sequence) -> bool:
        return self._threshold is not None and sequence.num_uncomputed > self._threshold

    def allows(self, sequence: Sequence) -> bool:
        """Whether its prompt may take part in the step."""
        return self._places is None or self._places > 0 or not self._is_long(sequence)

    def cap(self, sequence: Sequence, chunk: int) -> int:
        return min(chunk, self._cap) if self._is_long(sequence) else chunk

    def takes(self, sequence: Sequence) -> None:
        """It takes part in the step."""
        if self._places is not None and self._is_long(sequence):
            self._places -= 1
