"""Stop strings, found also where they cross tokens.

Text is emitted as soon as it can no longer be part of a stop string: only the longest tail that begins one is held.
"""

from collections.abc import Sequence


class StopMatcher:
    """`include`: the stop string itself is emitted too."""

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._held = ""

    def push(self, text: str, heed: bool = True) -> tuple[str, str | None]:
        """(text to emit, the stop string that ends the output). With `heed` false everything is emitted."""
        self._held += text
        if not heed:
            return self.flush(""), None
        found = min(
            ((at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0),
            key=lambda match: (match[0] + len(match[1]), match[0]),
            default=None,
        )
        if found is not None:
            at, stop = found
            emitted, self._held = self._held[: at + len(stop) if self._include else at], ""
            return emitted, stop
        keep = self._held_length()
        cut = len(self._held) - keep
        emitted, self._held = self._held[:cut], self._held[cut:]
        return emitted, None

    def flush(self, text: str = "") -> str:
        """Everything held, and `text`: the output ended otherwise."""
        emitted, self._held = self._held + text, ""
        return emitted

    def _held_length(self) -> int:
        """Length of the longest tail that begins a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
