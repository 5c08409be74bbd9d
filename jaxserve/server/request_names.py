"""The names that callers know a request by, X-Request-Id and the answer's `id`, and the scheduler's own for it.

One call may be several requests: a completion of three prompts is `cmpl-..-0`, `-1` and `-2` to the scheduler.
"""

from collections import OrderedDict
from collections.abc import Sequence

MOST_IDS = 8192
"""More than the journal tells of; what comes late pushes out what came first."""


class RequestNames:
    """Remembers the last calls'."""

    def __init__(self, most: int = MOST_IDS) -> None:
        self._most = most
        self._held = 0
        self._ids: OrderedDict[str, tuple[str, ...]] = OrderedDict()

    def note(self, name: str, ids: Sequence[str]) -> None:
        """Of two calls of one name the later is meant."""
        self._held -= len(self._ids.pop(name, ()))
        self._ids[name] = tuple(ids)
        self._held += len(ids)
        while self._held > self._most:
            self._held -= len(self._ids.popitem(last=False)[1])

    def ids(self, name: str) -> tuple[str, ...]:
        """The scheduler's ids of what `name` may stand for; `name` itself may be one."""
        return tuple(dict.fromkeys((name, *self._ids.get(name, ()))))
