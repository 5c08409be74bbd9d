"""The committed tile table is what the rule of `bench.tiles` gives, and the rule rejects what it says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.compile.tile_rule import Measured, Tile, choose, programs_at_most, rank, shared_at_least
from bench.compile.tiles import HEAD_DIMS, TABLE, table_text
from jaxserve.core.target import find_target
from jaxserve.runtime.programs.compile_only import has_compiler
from kernels_pallas.paged_attention.mosaic_gpu.tile_table import DECODE, PREFILL

ROOT = Path(__file__).parents[3]
H200 = find_target("h200")


def test_a_tile_that_spills_gives_way_to_the_next() -> None:
    fits = lambda tile: Measured(0, programs_at_most("decode", 128, 2, tile, H200))  # noqa: E731
    first = choose("decode", 128, 2, H200, fits)
    assert first is not None
    second = choose("decode", 128, 2, H200, lambda t: Measured(8, 2) if t == first.tile else fits(t))
    assert second is not None and second.tile != first.tile and first.tile in second.tried


def test_where_all_spill_the_least_is_taken() -> None:
    found = choose("prefill", 256, 1, H200, lambda tile: Measured(8 * tile.computing, 1))
    assert found is not None and found.tile == Tile(64, 1, 1) and found.measured.spills == 8
    assert set(found.tried) == {Tile(64, 1, 1), Tile(64, 1, 2)}


def test_too_few_programs_are_rejected() -> None:
    assert choose("decode", 256, 2, H200, lambda tile: Measured(0, 1)) is None
    assert choose("prefill", 256, 2, H200, lambda tile: Measured(0, 0)) is None
    assert rank("decode", 64, 2, Tile(32, 2), 2, H200) is None, "16 KiB in flight"
    one, two = (rank("prefill", 64, 2, Tile(64, 2, computing), 1, H200) for computing in (1, 2))
    assert one is not None and two is not None and one < two


def test_fewer_programs_than_hoped_for_have_the_next_tiles_looked_at() -> None:
    """Registers halve the programs of the first: the second's bound is then above what was found."""
    tried = []

    def measure(tile: Tile) -> Measured:
        tried.append(tile)
        most = programs_at_most("decode", 64, 2, tile, H200)
        return Measured(0, most if len(tried) > 1 else 2)

    found = choose("decode", 64, 2, H200, measure)
    assert found is not None and len(tried) > 1 and found.tried[found.tile].programs > 2


def test_shared_memory_of_the_widest_head() -> None:
    assert shared_at_least("decode", 256, 1, Tile(32, 3)) == (32 + 48 + 32) << 10
    assert shared_at_least("prefill", 256, 1, Tile(64, 1, 2)) == (64 + 64 + 64 + 32) << 10


def test_the_table_is_as_the_command_writes_it() -> None:
    table = {("decode", *key): tile for key, tile in DECODE.items()}
    table |= {("prefill", *key): tile for key, tile in PREFILL.items()}
    assert TABLE.read_text() == table_text(table, "h200", timed=False)
    assert {h for h, _ in DECODE} == {h for h, _ in PREFILL} == set(HEAD_DIMS)


@pytest.mark.skipif(not has_compiler(), reason="JAX's CUDA plugin is not installed (make cuda)")
def test_the_command_finds_what_is_committed() -> None:
    command = [sys.executable, "-m", "bench.tiles", "--target", "h200", "--head-dims", "128,256", "--only", "decode"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stdout + done.stderr
    for head_dim in (128, 256):
        for size in (2, 1):
            tile = DECODE[head_dim, size]
            assert f"decode H{head_dim} x {size} bytes: {(*tile, 1)};" in done.stdout, done.stdout
