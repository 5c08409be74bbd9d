"""The parts of `bench.gpu`. Each module's `items(setting)` yields measurements, the most important first."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """How a part is to run."""

    dry_run: bool
    """Tiny shapes, for a machine without a GPU: the same code, figures that mean nothing."""
    seed: int
    out: str
    """Folder of the results."""


@dataclass(frozen=True)
class Item:
    """One measurement. `run` returns what JSON can hold."""

    name: str
    run: Callable[[], dict[str, Any]]
    limit_s: float = 45.0
    """Whoever takes longer is ended, and the next item runs in a new process."""
