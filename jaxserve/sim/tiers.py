"""Host memory and a disk made of prices: moves take their time beside the steps, and nothing is stored.

device   |--- step 1 ---|--- step 2 ---|            copies to the host run beside the steps
copies      |== saves ==|== loads ==|               a step begins when the loads of the one before are there
disk            |======== writes, reads =========|   in the order asked; reported when they end
"""

from collections import deque

from jaxserve.core.move_costs import MoveCosts
from jaxserve.core.plan import Moved, MoveKind, StepPlan, Tier

WAIT_S = 0.02
"""Longest wait for the disk in a step that has nothing else to do."""


class SimTiers:
    def __init__(self, costs: MoveCosts) -> None:
        self._costs = costs
        self._copies_free_s = self._disk_free_s = 0.0
        self._ending: deque[tuple[float, Moved]] = deque()

    def begin(self, plan: StepPlan, now: float) -> float:
        """Start a plan's moves. Returns when its loads are on the device; `now` if it has none."""
        loaded_s = now
        for move in plan.moves:
            match move.kind:
                case MoveKind.SAVE:
                    self._copies_free_s = max(self._copies_free_s, now) + self._costs.to_host_s
                    if move.target is Tier.DISK:
                        self._end_on_disk(Moved(move, ok=True), self._copies_free_s, self._costs.to_disk_s)
                case MoveKind.LOAD:
                    self._copies_free_s = loaded_s = max(self._copies_free_s, now) + self._costs.from_host_s
                case MoveKind.FETCH:
                    self._end_on_disk(Moved(move, ok=True), now, self._costs.from_disk_s)
                case MoveKind.UNSTAGE | MoveKind.DROP:  # these take no time
                    pass
        return loaded_s

    def settled(self, now: float) -> tuple[Moved, ...]:
        ended: list[Moved] = []
        while self._ending and self._ending[0][0] <= now:
            ended.append(self._ending.popleft()[1])
        return tuple(ended)

    def next_s(self, now: float) -> float:
        """Until when a step without rows waits."""
        return min(self._ending[0][0], now + WAIT_S) if self._ending else now

    def _end_on_disk(self, moved: Moved, from_s: float, seconds: float) -> None:
        self._disk_free_s = max(self._disk_free_s, from_s) + seconds
        self._ending.append((self._disk_free_s, moved))
