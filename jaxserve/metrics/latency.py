"""What the field's words mean, in one place: the simulator, the load generator and the server's metrics agree.

    arrival      first scheduled        first token     second            last
    |---- queue wait ----|---- prefill ----|---- gap ----|---- gap .. gap ----|
    |------------- TTFT -------------------|-------- TPOT x (tokens - 1) -----|
    |---------------------------- E2E ----------------------------------------|

TTFT  first token - arrival: waiting is in it.
TPOT  (last token - first token) / (output tokens - 1), one value a request; a single token has none.
ITL   every gap between two tokens of a request, all requests' gaps together (TBT is another word for it).
E2E   last token - arrival.
queue wait  first scheduled - arrival.

TPOT is vLLM's and SGLang's; AIPerf and GuideLLM call that one ITL. Gaps are between tokens, not between chunks of a
stream: two tokens that come at the same moment are a gap of zero.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol


class Measured(Protocol):
    """A request that has ended, however it was observed. Times in seconds, on one clock."""

    @property
    def arrival_s(self) -> float: ...
    @property
    def token_s(self) -> Sequence[float]:
        """When each output token was known."""
        ...

    @property
    def first_scheduled_s(self) -> float | None:
        """None: never, or not observed."""
        ...

    @property
    def tenant(self) -> str: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def preemptions(self) -> int: ...
    @property
    def refused(self) -> str:
        """Why it was not taken; "" if it was."""
        ...

    @property
    def failed(self) -> str:
        """Why it ended before its end; "" if it did not."""
        ...


def ttft_s(arrival_s: float, token_s: Sequence[float]) -> float:
    return token_s[0] - arrival_s


def tpot_s(token_s: Sequence[float]) -> float | None:
    """None for fewer than two tokens."""
    return (token_s[-1] - token_s[0]) / (len(token_s) - 1) if len(token_s) > 1 else None


def gaps_s(token_s: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(token_s)]


def e2e_s(arrival_s: float, token_s: Sequence[float]) -> float:
    return token_s[-1] - arrival_s
