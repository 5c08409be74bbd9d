"""A plan's moves to and from the disk: jobs for the store's thread, in the plan's order, and what came of them.

save       device -> disk            written to the slot's file                              reported
fetch      disk -> staged            read into host memory, where it waits to be loaded      reported
load       staged -> device          `take`: handed out, and the file removed
unstage    staged -> disk            forgotten; the file stays
drop       disk, staged -> none      forgotten, and the file removed
"""

import queue
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxserve.core.plan import Move, Moved, MoveKind
from jaxserve.runtime.offload.disk_store import DiskStore

WAIT_S = 0.02
"""Longest wait for the disk in a step that has nothing else to do; new requests are seen after it."""
_Ended = queue.SimpleQueue[Moved]


class DiskMoves:
    """`block`: shape and type of a block's content; `on_host`: where it lies before it is loaded.

    Raises:
      ConfigError: the folder cannot be used.
    """

    def __init__(self, folder: str, block: jax.ShapeDtypeStruct, on_host: jax.sharding.Sharding) -> None:
        self._store = DiskStore(folder)
        self._block, self._on_host = block, on_host
        self._start()

    def _start(self) -> None:
        self._fetched: dict[int, jax.Array] = {}
        """By slot: what is staged."""
        self._written: dict[int, int] = {}
        """Key of the write that a slot's file is of."""
        self._ended: _Ended = queue.SimpleQueue()
        self._outstanding = 0

    def reset(self) -> None:
        """Forget everything. What the store's thread still does is for nobody."""
        self._store.submit(self._store.clear)
        self._start()

    def flush(self) -> None:
        """Wait until all that was begun has ended."""
        self._store.flush()

    def close(self) -> None:
        self._store.close()

    def begin(self, move: Move, content: jax.Array | None) -> None:
        """A move other than a load. `content`: of a save, perhaps still on its way to the host."""
        store, slot = self._store, move.source_block
        fetched, ended = self._fetched, self._ended  # a reset replaces both: a late job then reaches nobody
        match move.kind:
            case MoveKind.SAVE:
                assert content is not None
                self._written[move.target_block] = move.key
                self._outstanding += 1
                store.submit(partial(_save, store, ended, move, content))
            case MoveKind.FETCH:
                self._outstanding += 1
                key = self._written[slot]
                store.submit(partial(_fetch, store, ended, fetched, move, key, self._block, self._on_host))
            case MoveKind.UNSTAGE:
                fetched.pop(slot, None)
            case MoveKind.DROP:
                self._written.pop(slot, None)
                store.submit(partial(_drop, store, fetched, slot))
            case MoveKind.LOAD:
                raise AssertionError("a load is a `take`")

    def take(self, slot: int) -> jax.Array:
        """A fetched block's content, to be loaded; its file goes."""
        content = self._fetched.pop(slot)
        del self._written[slot]
        self._store.submit(partial(self._store.remove, slot))
        return content

    def settled(self, wait: bool) -> tuple[Moved, ...]:
        """Moves that have ended since the last call; `wait`: for one, a moment at most."""
        found: list[Moved] = []
        try:
            if wait and self._outstanding:
                found.append(self._ended.get(timeout=WAIT_S))
            while True:
                found.append(self._ended.get_nowait())
        except queue.Empty:
            pass
        self._outstanding -= len(found)
        return tuple(found)

    def measure(self, content: np.ndarray) -> tuple[float, float]:
        """Seconds that a block takes there and back. The store's thread must be idle."""
        data = _bytes_of(content)
        began = time.perf_counter()
        self._store.write(0, 0, data)
        middle = time.perf_counter()
        self._store.read(0, 0, len(data))
        ended = time.perf_counter()
        self._store.remove(0)
        return middle - began, ended - middle


def _bytes_of(content: np.ndarray) -> memoryview:
    return memoryview(np.ascontiguousarray(content).view(np.uint8).reshape(-1))


# --- in the store's thread ------------------------------------------------------------------------------------


def _save(store: DiskStore, ended: _Ended, move: Move, content: jax.Array) -> None:
    try:
        ok = store.write(move.target_block, move.key, _bytes_of(np.asarray(content)))
    except Exception:  # a failed step's array, say: the block is lost, and the ledger is told so
        ok = False
    ended.put(Moved(move, ok))


def _fetch(
    store: DiskStore,
    ended: _Ended,
    fetched: dict[int, jax.Array],
    move: Move,
    key: int,
    block: jax.ShapeDtypeStruct,
    on_host: jax.sharding.Sharding,
) -> None:
    size = int(np.prod(block.shape)) * jnp.dtype(block.dtype).itemsize
    data = store.read(move.source_block, key, size)
    if data is not None:
        content = np.frombuffer(data, np.uint8).view(block.dtype).reshape(block.shape)
        fetched[move.source_block] = jax.device_put(content, on_host)
    ended.put(Moved(move, data is not None))


def _drop(store: DiskStore, fetched: dict[int, jax.Array], slot: int) -> None:
    fetched.pop(slot, None)
    store.remove(slot)
