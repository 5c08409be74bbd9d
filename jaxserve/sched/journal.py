"""Why did it do that? One record a step in a bounded ring, and for every sequence an account of where its time goes.

A sequence is in one part at any moment (queued for a reason, in a prefill chunk, ...) and a change of part ends one and
begins the next at the same time, so that the parts of a request add up to its time, and those until its first token to
its time to first token, exactly.

Thousands may wait, and a step must not touch them all: those that wait for a common reason (others go first, or the
policy admits none) share one running total for each reason, and only a sequence whose reason changes is touched.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from jaxserve.core.decisions import DECODE, ENDED, INTAKE, PREFILL, Change, Decision, Part, Preemption, Reason, Waited
from jaxserve.core.sequence import Sequence

KEPT_ACCOUNTS = 512
"""Sequences that have ended and can still be asked about."""


@dataclass(slots=True)
class Account:
    """Seconds by part, until `since_s`; then its time goes to `part`.

    `shared`: it waits for a common reason, and these are the common totals at the time when it began to.
    """

    request: str
    part: Part
    since_s: float
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    shared: dict[Reason, float] | None = None
    away: bool = False
    """It was preempted and has not come back."""
    first_token: dict[str, float] | None = None
    """The parts of its time to first token."""
    preemptions: list[Preemption] = field(default_factory=list[Preemption])
    ended: str = ""

    @property
    def waits(self) -> str:
        return "preempted" if self.away else "queued"


class Journal:
    """Written by the scheduler's parts. `capacity`: steps that are remembered."""

    def __init__(self, capacity: int) -> None:
        self._ring: deque[Decision] = deque(maxlen=capacity)
        self._in_flight: deque[Decision] = deque()
        self._live: dict[Sequence, Account] = {}
        self._past: OrderedDict[str, Account] = OrderedDict()
        self._changes: list[Change] = []
        self._preemptions: list[Preemption] = []
        self._waited: list[Waited] = []
        self._others = Reason.ORDER
        self._totals: dict[Reason, float] = {Reason.ORDER: 0.0, Reason.GATE: 0.0}
        self._total_s: float | None = None
        self._held: dict[Sequence, Reason] = {}
        self._waiting: dict[Reason, int] = {}
        self.filling: set[Sequence] = set()
        """Sequences whose last chunk is in flight: their next token ends the prefill."""

    # --- what can be asked ------------------------------------------------------------------------------------

    def decisions(self) -> list[Decision]:
        """The steps that are remembered, oldest first."""
        self._flush()
        return list(self._ring)

    def waiting(self) -> Mapping[Reason, int]:
        """How many wait for each reason, in the last step planned."""
        return self._waiting

    def reason(self, sequence: Sequence) -> Reason | None:
        """Why a live sequence has no row; None: it has one."""
        account = self._live[sequence]
        return self._others if account.shared is not None else account.part.reason

    def account(self, sequence_id: str, now: float) -> Account | None:
        """A copy of an account, brought up to `now`; None: unknown, or forgotten."""
        found = next((a for s, a in self._live.items() if s.id == sequence_id), None)
        if found is None:
            return self._past.get(sequence_id)
        return self._copy(found, now)

    def accounts_of(self, request_id: str, now: float) -> dict[str, Account]:
        """By sequence: the request's n completions."""
        names = [s.id for s in self._live if s.request.id == request_id]
        names += [name for name, account in self._past.items() if account.request == request_id]
        return {name: found for name in names if (found := self.account(name, now)) is not None}

    def waits(self, sequence_id: str) -> dict[str, float]:
        """Seconds that a sequence that has ended waited until its first token, by reason; empty: forgotten."""
        account, found = self._past.get(sequence_id), dict[str, float]()
        if account is not None:
            for part, seconds in (account.seconds if account.first_token is None else account.first_token).items():
                name, _, reason = part.partition(":")
                if name in ("queued", "preempted"):
                    found[reason] = found.get(reason, 0.0) + seconds
        return found

    # --- coming and going -------------------------------------------------------------------------------------

    def queued(self, sequence: Sequence, now: float) -> None:
        arrival_s = sequence.request.arrival_s or now
        account = Account(sequence.request.id, INTAKE, min(arrival_s, now))
        self._live[sequence] = account
        if arrival_s < now:
            self._changes.append(Change(arrival_s, sequence.id, INTAKE))
        self._join_others(sequence, account, now)

    def preempted(self, sequence: Sequence, claimant: Sequence, fate: str, prices: Mapping[str, float]) -> None:
        entry = Preemption(sequence.id, claimant.id, fate, prices)
        self._preemptions.append(entry)
        account = self._live[sequence]
        account.preemptions.append(entry)
        account.away = True
        self.filling.discard(sequence)

    def waited(self, claimant: Sequence, spared: Sequence, prices: Mapping[str, float]) -> None:
        """In the step that is being packed the claimant waits, and `spared` is not preempted for it."""
        self._waited.append(Waited(claimant.id, spared.id, prices))

    def filled(self, sequence: Sequence, now: float) -> None:
        """The token after the last chunk of a sequence in `filling` is known."""
        self.filling.discard(sequence)
        self._enter(sequence, self._live[sequence], DECODE, now)

    def first_token(self, sequence: Sequence, now: float) -> None:
        self._live[sequence].first_token = self._copy(self._live[sequence], now).seconds

    def ended(self, sequence: Sequence, now: float) -> None:
        self.filling.discard(sequence)
        self._held.pop(sequence, None)
        account = self._live.pop(sequence)
        self._enter(sequence, account, ENDED, now)
        account.ended = str(sequence.finish_reason)
        self._past.pop(sequence.id, None)
        self._past[sequence.id] = account
        if len(self._past) > KEPT_ACCOUNTS:
            self._past.popitem(last=False)

    # --- the step ---------------------------------------------------------------------------------------------

    def packed(
        self, now: float, held: dict[Sequence, Reason], others: Reason, chunks: Iterable[Sequence], num_waiting: int
    ) -> None:
        """The step that was packed: `held` has reasons of sequences without a row, `others` that of all the rest."""
        self._advance(now)
        self._others = others
        for sequence in chunks:
            account = self._live[sequence]
            account.away = False
            if account.part != PREFILL or account.shared is not None:
                self._enter(sequence, account, PREFILL, now)
            if sequence.decoding:
                self.filling.add(sequence)
        for sequence in self._held:
            if sequence not in held:
                self._release(sequence, now)
        for sequence, reason in held.items():
            account = self._live[sequence]
            part = Part("running" if sequence.slot >= 0 else account.waits, reason)
            if account.part != part or account.shared is not None:
                self._enter(sequence, account, part, now)
        self._held = held
        counts = Counter(reason for sequence, reason in held.items() if sequence.slot < 0)
        counts[others] += num_waiting - counts.total()
        self._waiting = {reason: count for reason, count in counts.items() if count}

    def planned(self, decision: Decision) -> None:
        """A step was planned: add its record."""
        decision.displaced, self._preemptions = tuple(self._preemptions), []
        decision.waited, self._waited = tuple(self._waited), []
        decision.held = {sequence.id: reason for sequence, reason in self._held.items()}
        decision.waiting, decision.others = dict(self._waiting), self._others
        if self._ring and self._changes:
            self._ring[-1].changes += [c for c in self._changes if c.at_s < decision.planned_s]
            self._changes = [c for c in self._changes if c.at_s >= decision.planned_s]
        decision.changes, self._changes = self._changes, []
        self._ring.append(decision)
        self._in_flight.append(decision)

    def committed(self, now: float) -> None:
        """The oldest step in flight has ended."""
        self._in_flight.popleft().ended_s = now
        self._flush()

    def lost(self) -> None:
        """A step failed: no step in flight will be committed."""
        self._in_flight.clear()

    def _flush(self) -> None:
        """Changes since the last step was planned belong to that step."""
        if self._ring and self._changes:
            self._ring[-1].changes += self._changes
            self._changes = []

    def _copy(self, account: Account, now: float) -> Account:
        """As it would be if it ended now."""
        copy = replace(account, seconds=dict(account.seconds), preemptions=list(account.preemptions))
        self._advance(now)
        self._close(copy, now)
        return copy

    # --- parts ------------------------------------------------------------------------------------------------

    def _advance(self, now: float) -> None:
        """Bring the shared totals up to `now`."""
        if self._total_s is not None:
            self._totals[self._others] += max(now - self._total_s, 0.0)
        self._total_s = now if self._total_s is None else max(now, self._total_s)

    def _release(self, sequence: Sequence, now: float) -> None:
        """Its own reason is gone: it waits with the others, or runs."""
        account = self._live[sequence]
        if sequence.slot < 0:
            self._join_others(sequence, account, now)
        elif account.part.name == "running":
            self._enter(sequence, account, DECODE if sequence.decoding else PREFILL, now)

    def _join_others(self, sequence: Sequence, account: Account, now: float) -> None:
        self._advance(now)
        self._close(account, now)
        account.part, account.shared = Part(account.waits, self._others), dict(self._totals)
        self._changes.append(Change(now, sequence.id, Part(account.waits)))

    def _enter(self, sequence: Sequence, account: Account, part: Part, now: float) -> None:
        self._advance(now)
        self._close(account, now)
        account.part = part
        self._changes.append(Change(now, sequence.id, part))

    def _close(self, account: Account, now: float) -> None:
        """Book the time since the last change. The totals must be up to date."""
        seconds = account.seconds
        if account.shared is None:
            name = str(account.part)
            if (spent := now - account.since_s) > 0.0:
                seconds[name] = seconds.get(name, 0.0) + spent
        else:
            for reason, before in account.shared.items():
                if (spent := self._totals[reason] - before) > 0.0:
                    name = str(Part(account.part.name, reason))
                    seconds[name] = seconds.get(name, 0.0) + spent
            account.shared = None
        account.since_s = max(now, account.since_s)
