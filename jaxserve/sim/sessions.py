"""Agents: sessions that resend their whole history with every turn, and think between the turns.

    turn 1   [context ......]                                        | answer
    turn 2   [context ......][answer][new ..]                        | answer      thinks for a log-normal time before
    turn 3   [context ......][answer][new ..][answer][new ..]        | answer
    fork                             [answer][other ..]              | answer      a sub-session, from turn 2's prefix

A closed loop: a turn comes `think` seconds after the answer to the one before. A session that has become as long as
`longest` ends, and another one begins. Lengths are in blocks, so that prompts can share them by their ids; the answers
are of block `ANSWER`, which is what a simulated engine writes.
"""

import heapq
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from jaxserve.sim.arrivals import Arrival
from jaxserve.sim.executor import TOKEN

ANSWER = TOKEN
"""A prefix block of this id is the token that a simulated engine samples, over and over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agents:
    """Lengths in tokens, which are rounded to whole blocks."""

    sessions: int = 40
    think_s: float = 6.0
    """Mean of the think time."""
    sigma: float = 1.0
    """Of its logarithm."""
    context: tuple[int, int] = (4_000, 12_800)
    """Of a new session's first prompt, the least and the most."""
    turn: float = 700.0
    """Mean of what a turn adds, the answer before included; exponential."""
    answer: int = 64
    longest: int = 60_000
    fork: float = 0.0
    """Probability that a turn starts a sub-session from the same prefix."""
    fork_turns: int = 5
    """Turns of a sub-session."""
    block_tokens: int = 64
    named: bool = False
    """Requests say which session they belong to."""
    tenant: str = "default"


@dataclass(slots=True, eq=False)
class _Session:
    name: str
    rng: random.Random
    """Its own, so that it says the same however long its answers take."""
    blocks: list[int]
    turns: int | None = None
    """That are left; None: until it is as long as any."""


@dataclass(order=True, slots=True)
class _Turn:
    at_s: float
    number: int
    session: _Session | None = field(compare=False)
    arrival: Arrival | None = field(compare=False, default=None)
    """Of a request that belongs to no session."""


class SessionLoop:
    """A `Source` of agents' turns until `end_s`, and of the arrivals `beside` them, which are in order of time.

    The sessions are on their way as it begins: each has a length between the least context and the longest.
    """

    def __init__(self, agents: Agents, seed: int, end_s: float, beside: Iterable[Arrival] = ()) -> None:
        self._agents, self._seed, self._end_s = agents, seed, end_s
        self._mu = math.log(agents.think_s) - agents.sigma**2 / 2
        self._answer = max(agents.answer // agents.block_tokens, 1)
        self._blocks = ANSWER
        self._turns = 0
        self._coming: list[_Turn] = []
        self._under_way: dict[int, _Session] = {}
        self._number = -1
        for place in range(agents.sessions):
            session = self._new(f"{place}.0", agents.context[0], agents.longest)
            self._schedule(session.rng.uniform(0.0, agents.think_s), session)
        self._beside = iter(beside)
        self._next_beside()

    @property
    def next_s(self) -> float | None:
        return self._coming[0].at_s if self._coming else None

    @property
    def more(self) -> bool:
        return bool(self._coming or self._under_way)

    def take(self) -> tuple[int, Arrival]:
        turn = heapq.heappop(self._coming)
        self._number += 1
        if turn.session is None:
            assert turn.arrival is not None
            self._next_beside()
            return self._number, turn.arrival
        agents, session = self._agents, turn.session
        self._under_way[self._number] = session
        return self._number, Arrival(
            turn.at_s,
            len(session.blocks) * agents.block_tokens,
            self._answer * agents.block_tokens,
            agents.tenant,
            "turn",
            tuple(session.blocks),
            agents.block_tokens,
            session_id=session.name if agents.named else None,
        )

    def ended(self, at_s: float, number: int) -> None:
        session = self._under_way.pop(number, None)
        if session is None or at_s >= self._end_s:
            return
        agents = self._agents
        session.blocks += [ANSWER] * self._answer
        if session.turns is None and session.rng.random() < agents.fork:
            name = f"{session.name}/{len(session.blocks)}"
            fork = _Session(name, self._rng(name), list(session.blocks), agents.fork_turns)
            self._go_on(fork, at_s)
        self._go_on(session, at_s)

    def _go_on(self, session: _Session, at_s: float) -> None:
        """It thinks, and sends its next turn; or the next session begins in its place."""
        agents, rng = self._agents, session.rng
        at_s += rng.lognormvariate(self._mu, agents.sigma)
        added = round(rng.expovariate(1 / agents.turn) / agents.block_tokens) - self._answer
        session.blocks += self._fresh(max(added, 1))
        if session.turns is not None:
            session.turns -= 1
            if session.turns >= 0:
                self._schedule(at_s, session)
        elif len(session.blocks) * agents.block_tokens > agents.longest:
            place, _, generation = session.name.partition(".")
            self._schedule(at_s, self._new(f"{place}.{int(generation) + 1}", *agents.context))
        else:
            self._schedule(at_s, session)

    def _new(self, name: str, least: int, most: int) -> _Session:
        rng = self._rng(name)
        tokens = rng.randint(least, most)
        return _Session(name, rng, self._fresh(max(tokens // self._agents.block_tokens, 1)))

    def _rng(self, name: str) -> random.Random:
        return random.Random(f"{self._seed}/{name}")

    def _fresh(self, count: int) -> list[int]:
        """Blocks that no other prompt has."""
        self._blocks += count
        return list(range(self._blocks - count + 1, self._blocks + 1))

    def _schedule(self, at_s: float, session: _Session) -> None:
        self._turns += 1
        if at_s < self._end_s:
            heapq.heappush(self._coming, _Turn(at_s, self._turns, session))

    def _next_beside(self) -> None:
        arrival = next(self._beside, None)
        if arrival is not None:
            self._turns += 1
            heapq.heappush(self._coming, _Turn(arrival.at_s, self._turns, None, arrival))
