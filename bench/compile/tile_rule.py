"""Which tile a Mosaic GPU kernel takes: the rule of `bench.tiles`, without a compiler.

    decode     in flight = programs an SM x stages ahead x bytes of a tile of K and V
               stages ahead: all but the one that is computed; all where a tile is widened into a place of its own
    needed     = memory bandwidth x 1 us / multiprocessors                (36 KB on an H200)

A tile is rejected that spills on any of its probes; in decode also where an SM holds fewer than two programs or less
than `needed` is in flight. Of the others decode takes the one with most in flight, up to `ENOUGH` times what is needed;
then the most tokens, for a tile costs a fence and two waits; then the most programs, so that one's end hides behind
another's middle; then the fewest stages. Prefill takes two computing warpgroups an SM over one, so that one's softmax
hides behind the other's product; then two stages over one; then the most tokens. Where every tile
spills on some probe, the one that spills least is taken.

A bound of the rank is known before anything is compiled: registers and real shared memory can only lower the programs
an SM. Candidates are compiled from the highest bound down, until the best found is not below the next one's bound.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from jaxserve.core.target import Target

LATENCY_S = 1e-6
ENOUGH = 1.5
"""Times what is needed in flight; more than that counts for nothing."""
ROWS = 64
"""Of a `wgmma`: rows of the tile of queries."""
WARPGROUP = 128


class Tile(NamedTuple):
    tokens: int
    stages: int
    computing: int = 1
    """Warpgroups; prefill has one more, the producer."""


class Measured(NamedTuple):
    """The worst of a tile's probes."""

    spills: int
    programs: int
    """On a multiprocessor."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An entry of the table, and what it was chosen from."""

    tile: Tile
    measured: Measured
    tried: dict[Tile, Measured]


Rank = tuple[float, ...]


def candidates(kind: str, itemsize: int) -> list[Tile]:
    """Tiles worth a try.

    Longer decode tiles would leave most of a short row's last one empty; the producer of prefill that widens pages of
    8 bits does 64 tokens, a row each; a third stage of prefill hides nothing that the second does not.
    """
    if kind == "decode":
        return [Tile(*sizes) for sizes in product((32, 64), (2, 3, 4))]
    return [Tile(*sizes) for sizes in product((64, 128) if itemsize == 2 else (64,), (1, 2), (1, 2))]


def shared_at_least(kind: str, head_dim: int, itemsize: int, tile: Tile) -> int:
    """Bytes of a program's shared memory, barriers left out."""
    row, kv = 2 * head_dim, 2 * tile.tokens * head_dim
    if kind == "decode":
        wide = 2 * kv if itemsize == 1 else 0
        return ROWS * row + tile.stages * kv * itemsize + wide
    staged = ROWS * row * (1 if head_dim > 128 else tile.computing)
    narrow = 2 * kv if itemsize == 1 else 0
    return tile.computing * ROWS * row + tile.stages * kv * 2 + narrow + staged


def programs_at_most(kind: str, head_dim: int, itemsize: int, tile: Tile, target: Target) -> int:
    shared = shared_at_least(kind, head_dim, itemsize, tile)
    if shared > target.shared_memory_block:
        return 0
    threads = WARPGROUP * (tile.computing + (kind == "prefill"))
    return min(target.shared_memory // (shared + 1024), target.threads // threads)


def rank(kind: str, head_dim: int, itemsize: int, tile: Tile, programs: int, target: Target) -> Rank | None:
    """Higher is better; None: rejected."""
    if kind == "prefill":
        computing = min(programs * tile.computing, 2)
        return (float(computing), float(min(tile.stages, 2)), float(tile.tokens)) if computing else None
    needed = target.bandwidth * LATENCY_S / target.cores
    ahead = tile.stages - (itemsize > 1)
    in_flight = programs * ahead * 2 * tile.tokens * head_dim * itemsize
    if programs < 2 or in_flight < needed:
        return None
    return min(float(in_flight), ENOUGH * needed), float(tile.tokens), float(programs), float(-tile.stages)


def choose(
    kind: str, head_dim: int, itemsize: int, target: Target, measure: Callable[[Tile], Measured]
) -> Choice | None:
    """The best tile of those that pass, measured as few times as prove it; where all spill, the one that spills least.

    None where none fits.
    """
    bounds: dict[Tile, Rank] = {}
    for tile in candidates(kind, itemsize):
        most = programs_at_most(kind, head_dim, itemsize, tile, target)
        if (bound := rank(kind, head_dim, itemsize, tile, most, target)) is not None:
            bounds[tile] = bound
    tried: dict[Tile, Measured] = {}
    best: tuple[Rank, Tile] | None = None
    for tile, bound in sorted(bounds.items(), key=lambda item: item[1], reverse=True):
        if best is not None and best[0] >= bound:
            break
        found = tried[tile] = measure(tile)
        real = None if found.spills else rank(kind, head_dim, itemsize, tile, found.programs, target)
        if real is not None and (best is None or real > best[0]):
            best = real, tile
    if best is not None:
        return Choice(best[1], tried[best[1]], tried)
    fit = [tile for tile in tried if rank(kind, head_dim, itemsize, tile, tried[tile].programs, target) is not None]
    least = min(fit, key=lambda tile: tried[tile].spills, default=None)
    return None if least is None else Choice(least, tried[least], tried)
