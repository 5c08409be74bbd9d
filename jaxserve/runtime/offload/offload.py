"""Performs a plan's moves: K/V blocks between the device, host memory and the disk.

A block leaves the device as one array (`runtime.offload.block_movers`): a tier holds one array (or file) for each
block, and a transfer is one long copy.

    before the rows    gather the saved blocks (one program for 16, 4 or 1 of them), start their copies to the host;
                       start the copies of loaded blocks to the device
    the rows           run while those copies are on their way
    after the rows     scatter the loaded blocks into the cache, which is donated and changes in place

What goes to or comes from the disk is the work of `runtime.offload.disk_moves`, beside the steps.

Programs run in order, so that a saved block may be overwritten, and a loaded one used, without waiting. The host's pool
is pinned memory on a GPU (`Placement.host`), where copies then run beside the programs; on the CPU it is
plain memory, and a saved block stays where the gather put it. The pool is allocated at the start: each slot's array
gives its memory to the one that replaces it.
"""

import time
from collections import deque
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from jaxserve.core.errors import NotEnoughMemory
from jaxserve.core.move_costs import MoveCosts
from jaxserve.core.plan import Move, Moved, MoveKind, Tier
from jaxserve.core.sections import CacheConfig
from jaxserve.parallel.placement import Placement
from jaxserve.runtime.geometry import Geometry
from jaxserve.runtime.kv_cache import KVCache, abstract_cache
from jaxserve.runtime.offload.block_movers import GROUPS, block_of, groups
from jaxserve.runtime.offload.disk_moves import DiskMoves
from jaxserve.runtime.programs.table import ProgramTable

MAX_LEAVING_BYTES = 256 << 20
"""Saved blocks that may still lie on the device, waiting for their copies."""

Loads = list[tuple[int, jax.Array]]  # (device block, its content on the device)


class Offload:
    """The tiers' bytes.

    Args:
      config: the disk's folder.
      programs: executables by `mover_keys`.

    Raises:
      ConfigError: the disk's folder cannot be used. NotEnoughMemory: the host's pool does not fit.
    """

    def __init__(self, geometry: Geometry, placement: Placement, programs: ProgramTable, config: CacheConfig) -> None:
        self._block = block_of(abstract_cache(geometry))
        self._block_bytes = int(np.prod(self._block.shape)) * jnp.dtype(self._block.dtype).itemsize
        self._on_device, self._on_host = placement.pages, placement.host
        self._host: list[jax.Array] = self._allocate(geometry.host_blocks)
        self._disk = None
        if geometry.disk_blocks:
            self._disk = DiskMoves(config.offload_disk_dir, self._block, self._on_host)
        self._programs = programs
        self._leaving: deque[list[jax.Array]] = deque()

    def reset(self) -> None:
        """Forget everything: the ledger does too."""
        if self._disk is not None:
            self._disk.reset()
        self._leaving.clear()

    def close(self) -> None:
        if self._disk is not None:
            self._disk.close()

    def measure(self, cache: KVCache) -> tuple[MoveCosts, KVCache]:
        """What moving a block takes, from 16 of them moved there and back; zeros without tiers. The cache is as before.

        Once before anything is served: the disk's thread must be idle.
        """
        size = GROUPS[0]
        if ("gather", size) not in self._programs:
            return MoveCosts(to_host_s=0.0, from_host_s=0.0), cache
        blocks = np.arange(size, dtype=np.int32) % cache[0].keys.shape[0]
        seconds: list[tuple[float, float]] = []
        for _ in range(3):  # the first ones pay for what is done once
            began = time.perf_counter()
            saved = jax.device_put(list(self._programs["gather", size](cache, blocks)), self._on_host)
            jax.block_until_ready(saved)
            middle = time.perf_counter()
            back = tuple(jax.device_put(saved, self._on_device))
            cache = jax.block_until_ready(self._programs["scatter", size](cache, blocks, back))
            seconds.append(((middle - began) / size, (time.perf_counter() - middle) / size))
        to_host, from_host = (min(times) for times in zip(*seconds, strict=True))
        to_disk, from_disk = self._disk.measure(np.asarray(saved[0])) if self._disk is not None else (0.0, 0.0)
        costs = MoveCosts(to_host_s=to_host, from_host_s=from_host, to_disk_s=to_disk, from_disk_s=from_disk)
        return costs, cache

    # --- a step -----------------------------------------------------------------------------------------------

    def begin(self, cache: KVCache, moves: Iterable[Move]) -> Loads:
        """Everything but the scatter: before the step's rows are dispatched."""
        moves = tuple(moves)
        saved = self._gather(cache, [move for move in moves if move.kind is MoveKind.SAVE])
        loads: Loads = []
        for move in moves:  # in order: a slot may be loaded and then saved to
            match move.kind:
                case MoveKind.LOAD:
                    loads.append((move.target_block, jax.device_put(self._content(move), self._on_device)))
                case MoveKind.SAVE if move.target is Tier.HOST:
                    self._host[move.target_block] = saved[move.key]
                case _:
                    assert self._disk is not None
                    self._disk.begin(move, saved.get(move.key))
        return loads

    def finish(self, cache: KVCache, loads: Loads) -> KVCache:
        """Put the loaded blocks into the (donated) cache: after the step's rows are dispatched."""
        begin = 0
        for size in groups(len(loads)):
            part = loads[begin : begin + size]
            blocks = np.array([block for block, _ in part], np.int32)
            cache = self._programs["scatter", size](cache, blocks, tuple(content for _, content in part))
            begin += size
        return cache

    def settled(self, wait: bool = False) -> tuple[Moved, ...]:
        """Moves to and from the disk that have ended since the last call; `wait`: for one, a moment at most."""
        return self._disk.settled(wait) if self._disk is not None else ()

    # --- the host's pool --------------------------------------------------------------------------------------

    def _gather(self, cache: KVCache, moves: list[Move]) -> dict[int, jax.Array]:
        """Arrays of the saved blocks by key, on their way to the host."""
        saved: dict[int, jax.Array] = {}
        begin = 0
        for size in groups(len(moves)):
            part = moves[begin : begin + size]
            self._bound_leaving(size * self._block_bytes)
            blocks = np.array([move.source_block for move in part], np.int32)
            arrays = jax.device_put(list(self._programs["gather", size](cache, blocks)), self._on_host)
            self._leaving.append(arrays)
            saved |= {move.key: array for move, array in zip(part, arrays, strict=True)}
            begin += size
        return saved

    def _bound_leaving(self, more: int) -> None:
        """Wait for the oldest copies while those under way hold too much of the device's memory."""
        while self._leaving and self._leaving[0][0].is_ready():
            self._leaving.popleft()
        while (
            self._leaving
            and sum(len(arrays) for arrays in self._leaving) * self._block_bytes + more > MAX_LEAVING_BYTES
        ):
            jax.block_until_ready(self._leaving.popleft())

    def _content(self, move: Move) -> jax.Array:
        if move.source is Tier.HOST:
            return self._host[move.source_block]
        assert self._disk is not None
        return self._disk.take(move.source_block)

    def _allocate(self, count: int) -> list[jax.Array]:
        shape, dtype = self._block.shape, self._block.dtype  # np.full touches the memory, np.zeros only asks for it
        try:
            pool = [jax.device_put(np.full(shape, 0, dtype), self._on_host) for _ in range(count)]
            return jax.block_until_ready(pool)
        except (MemoryError, RuntimeError) as error:
            raise NotEnoughMemory(
                f"the host has no {count * self._block_bytes / 2**30:.2f} GiB for offload_host_bytes: lower it"
            ) from error
