"""The tiers' bytes: what is saved is what comes back, whatever else is moved between; and what a disk can do wrong."""

import errno
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError
from jaxserve.core.plan import Move, Moved, Tier
from jaxserve.core.sections import CacheConfig
from jaxserve.models import ModelConfig
from jaxserve.parallel.placement import Placement
from jaxserve.runtime.geometry import Geometry
from jaxserve.runtime.kv_cache import abstract_cache
from jaxserve.runtime.offload.block_movers import lower_mover, mover_keys
from jaxserve.runtime.offload.disk_store import SUFFIX, DiskStore
from jaxserve.runtime.offload.offload import Offload
from jaxserve.runtime.programs.table import ProgramTable
from kernels_pallas.pages import Pages

BLOCKS, LAYERS, PAGE = 40, 3, (2, 8, 4)  # K, S, H


def cache_of(dtype: Any) -> Any:
    rng = np.random.default_rng(5)
    pages = [jnp.asarray(rng.normal(size=(BLOCKS, *PAGE)) * 9, dtype) for _ in range(2 * LAYERS)]
    scales: list[Any] = [None] * len(pages)
    if jnp.dtype(dtype).itemsize == 1:
        scales = [jnp.asarray(rng.uniform(size=(BLOCKS, PAGE[0])), jnp.float32) for _ in pages]
    halves = pages[::2], pages[1::2], scales[::2], scales[1::2]
    return tuple(Pages(*layer) for layer in zip(*halves, strict=True))


MODEL = ModelConfig(
    architecture="LlamaForCausalLM", vocab_size=64, hidden_size=8, intermediate_size=8, num_layers=LAYERS,
    num_heads=PAGE[0], num_kv_heads=PAGE[0], head_dim=PAGE[2], max_position_embeddings=4096,
)  # fmt: skip


def geometry_of(dtype: Any, **tiers: int) -> Geometry:
    geometry = Geometry.of(MODEL, EngineConfig.from_settings(block_size=PAGE[1]), "float32", num_blocks=BLOCKS)
    return replace(geometry, page_dtype=jnp.dtype(dtype), **tiers)


@cache
def programs_of(dtype: Any) -> ProgramTable:
    """What moves a cache's blocks, compiled once a type."""
    shapes = abstract_cache(geometry_of(dtype))
    assert jax.tree.map(jnp.shape, cache_of(dtype)) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    programs = ProgramTable(lambda key: lower_mover(shapes, *key, Placement.default()).compile(), 1)
    programs.compile(mover_keys())
    return programs


def make(
    folder: Path, dtype: Any = jnp.float32, host: int = 30, disk: int = 30, memory_kind: str | None = None
) -> Offload:
    geometry, config = geometry_of(dtype, host_blocks=host, disk_blocks=disk), CacheConfig(offload_disk_dir=str(folder))
    placement = Placement(jax.devices()[0], host_memory=memory_kind)
    return Offload(geometry, placement, programs_of(dtype), config)


class Moves:
    """Numbers moves as a ledger does."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, source: Tier, blocks: list[int], target: Tier, to: list[int]) -> list[Move]:
        found = [Move(source, b, target, t, self.count + i) for i, (b, t) in enumerate(zip(blocks, to, strict=True))]
        self.count += len(found)
        return found


def run(offload: Offload, cache: Any, moves: list[Move]) -> Any:
    return offload.finish(cache, offload.begin(cache, moves))


def wait_for(offload: Offload, count: int) -> list[Moved]:
    found: list[Moved] = []
    for _ in range(500):
        found += offload.settled(wait=True)
        if len(found) >= count:
            return found
    raise AssertionError(f"{len(found)} of {count} moves ended")


def wipe(cache: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.at[1:].set(jnp.asarray(-1, leaf.dtype)), cache)


def same_blocks(left: Any, right: Any, pairs: list[tuple[int, int]]) -> bool:
    leaves = [[np.asarray(leaf) for leaf in jax.tree.leaves(cache)] for cache in (left, right)]
    return all(np.array_equal(a[i], b[j]) for a, b in zip(*leaves, strict=True) for i, j in pairs)


@pytest.mark.parametrize("memory_kind", [None, "pinned_host"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float8_e4m3fn, jnp.int8])
@pytest.mark.parametrize("count", [1, 3, 21])
def test_host_blocks_come_back_bitwise(tmp_path: Path, memory_kind: str | None, dtype: Any, count: int) -> None:
    offload, move = make(tmp_path, dtype, memory_kind=memory_kind), Moves()
    blocks, slots, back = list(range(1, count + 1)), list(range(count)), list(range(39, 39 - count, -1))
    original = cache_of(dtype)
    cache = run(offload, original, move(Tier.DEVICE, blocks, Tier.HOST, slots))
    cache = run(offload, wipe(cache), move(Tier.HOST, slots, Tier.DEVICE, back))
    expected = cache_of(dtype)
    assert same_blocks(cache, expected, list(zip(back, blocks, strict=True)))
    assert count > 20 or np.all(np.asarray(cache[0].keys[20], np.float32) == -1), "only what is loaded is written"
    offload.close()


def test_a_slot_may_be_loaded_and_saved_to_in_one_step(tmp_path: Path) -> None:
    offload, move = make(tmp_path), Moves()
    cache = run(offload, cache_of(jnp.float32), move(Tier.DEVICE, [5], Tier.HOST, [0]))
    swap = move(Tier.HOST, [0], Tier.DEVICE, [6]) + move(Tier.DEVICE, [6], Tier.HOST, [0])
    cache = run(offload, cache, swap)
    cache = run(offload, cache, move(Tier.HOST, [0], Tier.DEVICE, [7]))
    assert same_blocks(cache, cache_of(jnp.float32), [(6, 5), (7, 6)])
    offload.close()


def test_disk_blocks_come_back_and_leave_nothing(tmp_path: Path) -> None:
    offload, move = make(tmp_path), Moves()
    blocks = list(range(1, 22))
    cache = run(offload, cache_of(jnp.float32), move(Tier.DEVICE, blocks, Tier.DISK, blocks))
    assert all(ok for _, ok in wait_for(offload, 21))
    assert len(list(tmp_path.glob(f"*{SUFFIX}"))) == 21
    cache = run(offload, wipe(cache), move(Tier.DISK, blocks, Tier.STAGED, blocks))
    assert all(ok for _, ok in wait_for(offload, 21))
    cache = run(offload, cache, move(Tier.STAGED, blocks[1:], Tier.DEVICE, blocks[1:]))
    cache = run(offload, cache, move(Tier.DISK, [1], Tier.NONE, [1]))
    assert same_blocks(cache, cache_of(jnp.float32), [(i, i) for i in blocks[1:]])
    offload._disk.flush()
    assert not list(tmp_path.glob(f"*{SUFFIX}"))
    offload.close()


def damage_checksum(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        damage_checksum,
        Path.unlink,
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes((path.parent / f"00000002{SUFFIX}").read_bytes()),
    ],
    ids=["checksum", "missing", "short", "long", "empty", "another's"],
)
def test_a_file_that_is_not_what_was_written_fails_alone(tmp_path: Path, damage: Any) -> None:
    offload, move = make(tmp_path), Moves()
    cache = run(offload, cache_of(jnp.float32), move(Tier.DEVICE, [1, 2], Tier.DISK, [1, 2]))
    wait_for(offload, 2)
    damage(tmp_path / f"00000001{SUFFIX}")
    run(offload, cache, move(Tier.DISK, [1, 2], Tier.STAGED, [1, 2]))
    assert [ok for _, ok in wait_for(offload, 2)] == [False, True]
    offload.close()


class FullFile:
    """A file on a disk without room."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __enter__(self) -> "FullFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_fails_the_write_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offload, move = make(tmp_path), Moves()
    real = Path.open

    def full(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        file = real(path, mode, *args, **options)
        return FullFile(file) if mode == "wb" and path.name.startswith("00000001") else file

    monkeypatch.setattr(Path, "open", full)
    run(offload, cache_of(jnp.float32), move(Tier.DEVICE, [1, 2], Tier.DISK, [1, 2]))
    assert [ok for _, ok in wait_for(offload, 2)] == [False, True]
    assert [path.name for path in tmp_path.glob(f"*{SUFFIX}")] == [f"00000002{SUFFIX}"]
    offload.close()


def test_what_waits_for_its_copy_on_the_device_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxserve.runtime.offload.offload.MAX_LEAVING_BYTES", 20 * 2 * LAYERS * 2 * 8 * 4 * 4)
    offload, move = make(tmp_path), Moves()
    for start in (0, 5, 9):
        saved = offload._gather(
            cache_of(jnp.float32), move(Tier.DEVICE, list(range(1, 31)), Tier.HOST, list(range(30)))
        )
        assert len(saved) == 30 and sum(len(arrays) for arrays in offload._leaving) <= 20, start
    offload.close()


def test_a_reset_forgets_and_removes(tmp_path: Path) -> None:
    offload, move = make(tmp_path), Moves()
    run(offload, cache_of(jnp.float32), move(Tier.DEVICE, [1, 2], Tier.DISK, [1, 2]))
    offload.reset()
    offload._disk.flush()
    assert not list(tmp_path.glob(f"*{SUFFIX}")) and offload.settled() == ()
    cache = run(offload, cache_of(jnp.float32), move(Tier.DEVICE, [3], Tier.DISK, [1]))
    run(offload, cache, move(Tier.DISK, [1], Tier.STAGED, [1]))
    assert [ok for _, ok in wait_for(offload, 2)] == [True, True]
    offload.close()


def test_leftovers_of_a_crash_are_removed(tmp_path: Path) -> None:
    (tmp_path / f"00000007{SUFFIX}").write_bytes(b"from before")
    (tmp_path / "notes.txt").write_text("not ours")
    store = DiskStore(tmp_path)
    assert not list(tmp_path.glob(f"*{SUFFIX}")) and (tmp_path / "notes.txt").exists()
    with pytest.raises(ConfigError, match="in use by another engine"):
        DiskStore(tmp_path)
    store.close()
    DiskStore(tmp_path).close()


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can be written"):
        DiskStore(tmp_path / "file" / "kv")


def test_nothing_is_waited_for_when_nothing_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without, offload, move = make(tmp_path, disk=0), make(tmp_path), Moves()
    ended, waits = offload._disk._ended, list[float]()

    def get(timeout: float) -> Any:
        waits.append(timeout)
        return ended.get(timeout=timeout)

    monkeypatch.setattr(offload._disk, "_ended", SimpleNamespace(get=get, get_nowait=ended.get_nowait, put=ended.put))
    assert without.settled(wait=True) == offload.settled(wait=True) == () and not waits
    run(offload, cache_of(jnp.float32), move(Tier.DEVICE, [1], Tier.DISK, [1]))
    wait_for(offload, 1)
    assert waits, "otherwise it is"
    for one in (without, offload):
        one.close()
