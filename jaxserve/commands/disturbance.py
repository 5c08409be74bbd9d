"""How much of the machine did others take while something was timed?

A step of a small model on two cores takes up to ten times as long while a compiler runs beside it: whoever reports
step times has to know. Linux says how long all processors were busy; what this process did not use, others did.
"""

import os
import time
from pathlib import Path

QUIET = 0.05
"""Share of all processors that others may take of a machine called quiet: daemons, and the tool that reads this."""
_COUNTED = (0, 1, 2, 5, 6, 7)
"""Columns of /proc/stat that are work: user, nice, system, irq, softirq, and what a hypervisor gave to others."""


class Disturbance:
    """Counts from when it is made. `stat`: the file that Linux counts in."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._began_s, self._busy_s, self._own_s = time.monotonic(), _busy_s(stat), _own_s()

    def share(self) -> float | None:
        """Of all processors' time since then, what others used; None where the system does not say."""
        busy_s, elapsed_s = _busy_s(self._stat), time.monotonic() - self._began_s
        if busy_s is None or self._busy_s is None or elapsed_s <= 0.0:
            return None
        others_s = (busy_s - self._busy_s) - (_own_s() - self._own_s)
        return max(others_s, 0.0) / (elapsed_s * (os.cpu_count() or 1))


def _busy_s(stat: Path) -> float | None:
    try:
        columns = stat.read_text().split("\n", 1)[0].split()[1:]
        return sum(int(columns[i]) for i in _COUNTED) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def _own_s() -> float:
    return sum(os.times()[:4])
