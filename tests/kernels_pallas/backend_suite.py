"""What every backend of paged attention must do, written once: a backend's test class inherits `BackendSuite`.

Every run draws its own cases; their seed is printed with each, and `KERNELS_SEED=N` draws them again. The answer is
`cases.expected`, in float64.
"""

import itertools
import os
import secrets
from dataclasses import replace
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.paged_attention import decode, prefill
from kernels_pallas.paged_attention.cases import BARS, Case, draw, expected, relative_error
from kernels_pallas.pages import Pages
from kernels_pallas.write_kv import write

SEED = int(os.environ.get("KERNELS_SEED", secrets.randbelow(2**31)))
RUN = {"decode": decode, "prefill": prefill}


def compute(case: Case, backend: str, interpret: bool = False, debug: bool = False) -> np.ndarray:
    """The backend's output for the case, through a jitted call."""
    static = case.options
    sinks = static.pop("sinks")
    run = jax.jit(partial(RUN[case.kind], **static, backend=backend, interpret=interpret, debug=debug))
    return np.asarray(run(*case.arguments, sinks=sinks))


HALF_A_UNIT = 2.0**-4
"""Largest relative rounding error of float8_e4m3fn."""


def written(case: Case, kv_dtype: str) -> Case:
    """The case on pages of 8 bits that hold what its own do, written in three calls, over what others left there.

    The tokens written first are the smallest: scales grow. What the case has in no row's slots is not written.
    """
    size, used = case.problem.page_size, np.unique(case.tables)
    cuts, rng = [0, max(1, size // 5), size // 2, size], np.random.default_rng(case.seed)
    shape = case.pages.keys.shape
    for given in (case.pages.keys, case.pages.values):
        given[~np.isfinite(given)] = 0.0
        given[:, :, : cuts[1]] *= 0.1
    numbers = [jnp.asarray(rng.integers(-100, 100, shape), jnp.int8).astype(kv_dtype) for _ in range(2)]
    scales = [jnp.asarray(rng.uniform(1.0, 9.0, shape[:2]), jnp.float32) for _ in range(2)]
    pages = Pages(*numbers, *scales)
    for begin, end in itertools.pairwise(cuts):
        slots = (used[:, None] * size + np.arange(begin, end)).reshape(-1).astype(np.int32)
        k, v = (
            jnp.asarray(given[used][:, :, begin:end].transpose(0, 2, 1, 3).reshape(len(slots), shape[1], shape[3]))
            for given in (case.pages.keys, case.pages.values)
        )
        firsts = np.arange(0, len(slots), end - begin, dtype=np.int32)
        pages = jax.jit(write)(pages, k, v, slots, firsts)
    return replace(
        case, problem=replace(case.problem, kv_dtype=kv_dtype), pages=jax.tree.map(np.asarray, pages)
    )  # fmt: skip


class BackendSuite:
    """Inherit, name the backend, and give the sizes that it can be tested at in reasonable time."""

    backend: ClassVar[str]
    interpret: ClassVar[bool] = False
    dtypes: ClassVar[tuple[str, ...]] = ("bfloat16", "float16")
    quantised: ClassVar[tuple[str, ...]] = ("float8_e4m3fn", "int8")
    head_dims: ClassVar[tuple[int, ...]] = (64, 96, 128, 256)
    page_sizes: ClassVar[tuple[int, ...]] = (8, 16, 32, 64, 128)
    draws: ClassVar[int] = 2
    """Cases of each kind, type and head dimension."""
    sizes: ClassVar[dict[str, int]] = {}
    """What `cases.draw` is to hold fixed."""

    def check(self, case: Case) -> None:
        error = relative_error(case, compute(case, self.backend, self.interpret))
        print(f"{case}: relative error {error:.1e}")
        assert error <= BARS[case.problem.dtype], f"relative error {error:.2e}: {case}"

    def seeds(self, *what: object) -> list[int]:
        """Fresh seeds, one a draw, different for every test."""
        mixed = np.random.SeedSequence([SEED, *map(ord, str((self.backend, *what)))])
        return [int(state) for state in mixed.generate_state(self.draws)]

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["decode", "prefill"])
    @pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
    def test_against_float64(self, head_dim: int, kind: str) -> None:
        if head_dim not in self.head_dims:
            pytest.skip(f"{self.backend} has no kernels for head dimension {head_dim}")
        for dtype in self.dtypes:
            for seed in self.seeds(kind, head_dim, dtype):
                self.check(draw(kind, seed, head_dim=head_dim, dtype=dtype, **self.sizes))

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["decode", "prefill"])
    @pytest.mark.parametrize("kv_dtype", ["float8_e4m3fn", "int8"])
    def test_quantised_pages(self, kv_dtype: str, kind: str) -> None:
        if kv_dtype not in self.quantised:
            pytest.skip(f"{self.backend} has no kernels for pages of {kv_dtype}")
        for dtype in self.dtypes:
            for seed in self.seeds(kind, kv_dtype, dtype):
                head_dim = self.head_dims[seed % len(self.head_dims)]
                case = draw(kind, seed, head_dim=head_dim, dtype=dtype, kv_dtype=kv_dtype, **self.sizes)
                self.check(case)

    @pytest.mark.slow
    @pytest.mark.parametrize("kv_dtype", ["float8_e4m3fn", "int8"])
    def test_attention_on_what_was_written(self, kv_dtype: str) -> None:
        """Exact on the rounded keys and values; over the whole output, within a rounding of what they were made from.

        float8 rounds relative to each number, int8 to quanta of its page's scale: a mean of values is at most one off.
        Over the whole: a row that sees only a page's smallest tokens has their error, which is that of the largest.
        """
        seed = self.seeds("written", kv_dtype)[0]
        kind, dtype = ("decode", "prefill")[seed % 2], self.dtypes[seed % len(self.dtypes)]
        case = draw(kind, seed, head_dim=64, dtype=dtype, plain=True, **self.sizes)
        rounded = written(case, kv_dtype)
        self.check(rounded)
        real = slice(None) if kind == "decode" else slice(case.offsets[-1])
        answer, found = expected(case)[real], compute(rounded, self.backend, self.interpret)[real]
        error, limit = np.linalg.norm(found.astype(np.float64) - answer), HALF_A_UNIT * np.linalg.norm(answer)
        if kv_dtype == "int8":
            assert rounded.pages.value_scales is not None
            limit = rounded.pages.value_scales[np.unique(case.tables)].max() * np.sqrt(answer.size)
        print(f"{case}: error {error:.2e} of {limit:.2e} on {kv_dtype} pages")
        assert error <= limit

    @pytest.mark.slow
    @pytest.mark.parametrize("group", [1, 2, 3, 4, 6, 8, 16])
    def test_every_group(self, group: int) -> None:
        kind = "decode" if SEED % 2 else "prefill"
        seed = self.seeds("group", group)[0]
        dtype = self.dtypes[seed % len(self.dtypes)]
        self.check(draw(kind, seed, head_dim=64, dtype=dtype, group=group, **self.sizes))

    @pytest.mark.slow
    @pytest.mark.parametrize("page_size", [8, 16, 32, 64, 128])
    def test_every_page_size(self, page_size: int) -> None:
        if page_size not in self.page_sizes:
            pytest.skip(f"{self.backend} has no kernels for pages of {page_size}")
        kind = "prefill" if SEED % 2 else "decode"
        seed = self.seeds("page", page_size)[0]
        dtype = self.dtypes[seed % len(self.dtypes)]
        self.check(draw(kind, seed, head_dim=128, dtype=dtype, page_size=page_size, **self.sizes))

    @pytest.mark.parametrize("kind", ["decode", "prefill"])
    def test_a_small_case(self, kind: str) -> None:
        """The quick one of each kind: the rest of the suite is slow."""
        sizes = self.sizes | {"max_pages": 2, "rows": 5, "page_size": 16, "kv_heads": 1, "group": 2}
        self.check(draw(kind, self.seeds("small", kind)[0], head_dim=64, dtype=self.dtypes[0], **sizes))

    @pytest.mark.slow
    @pytest.mark.parametrize("window", [None, 100])
    @pytest.mark.parametrize("kind", ["decode", "prefill"])
    def test_a_row_longer_than_the_rings(self, kind: str, window: int | None) -> None:
        """Tiles are of 128 tokens at most, and two are on their way: this row has 305 or more, and repeats a page."""
        seed = self.seeds("long", kind, window)[0]
        sizes = self.sizes | {"max_pages": 20, "rows": 5, "page_size": 16, "kv_heads": 1, "group": 2}
        case = draw(kind, seed, head_dim=64, dtype=self.dtypes[0], plain=True, long_row=True, **sizes)
        self.check(replace(case, sliding_window=window))
