"""What came of every call and of every check, as two tables."""

from collections import Counter, defaultdict
from dataclasses import dataclass

from jaxserve.commands.tables import table

COLUMNS = ("200", "4xx", "429", "503", "504", "507", "left", "cut", "killed", "wrong")


class Tally:
    """Counts calls by kind and outcome; what is not as announced is kept in words."""

    def __init__(self) -> None:
        self.counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.wrong: list[str] = []

    def status(self, kind: str, status: int) -> None:
        known = str(status) in COLUMNS
        self.counts[kind][str(status) if known else f"{status // 100}xx"] += 1

    def note(self, kind: str, outcome: str) -> None:
        """left: by the client; cut: by the server, as it should; killed: with the server."""
        self.counts[kind][outcome] += 1

    def fail(self, kind: str, what: str) -> None:
        self.counts[kind]["wrong"] += 1
        self.wrong.append(f"{kind}: {what}"[:300])

    @property
    def total(self) -> int:
        return sum(sum(counts.values()) for counts in self.counts.values())

    def show(self) -> str:
        rows: list[list[object]] = []
        for kind, counts in sorted(self.counts.items()):
            rows.append([kind, sum(counts.values()), *(counts[column] for column in COLUMNS)])
        rows.append(["all", self.total, *(sum(c[column] for c in self.counts.values()) for column in COLUMNS)])
        return table(["call", "sent", *COLUMNS], rows)


@dataclass(frozen=True)
class Check:
    """`good` None: it could not be tried, and `found` says why."""

    name: str
    found: str
    good: bool | None


def show(checks: list[Check]) -> str:
    verdicts = {True: "ok", False: "FAILED", None: "not tried"}
    return table(["check", "found", ""], [[c.name, c.found, verdicts[c.good]] for c in checks])
