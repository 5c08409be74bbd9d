"""The Triton kernel in Pallas' interpreter, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.paged_attention import UnsupportedByBackend, choice, decode, triton
from kernels_pallas.paged_attention.cases import draw, relative_error
from kernels_pallas.paged_attention.options import Problem
from kernels_pallas.pages import Pages
from tests.kernels_pallas.backend_suite import BackendSuite, compute


class TestTriton(BackendSuite):
    backend = "triton"
    interpret = True
    draws = 1
    sizes = {"max_pages": 2, "rows": 6}  # noqa: RUF012


@pytest.mark.slow
@pytest.mark.parametrize("splits", [2, 4])
def test_rows_split_over_programs_give_the_same(splits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_floor_power", lambda n: splits)
    for seed in (1, 2, 3):
        case = draw("decode", seed, head_dim=64, dtype="float16", page_size=16, max_pages=10, rows=6)
        assert relative_error(case, compute(case, "triton", interpret=True)) < 2e-3


@pytest.mark.parametrize(
    ("change", "words"),
    [({"head_dim": 72}, "head dimension 72"), ({"group": 32}, "32 query heads"), ({"dtype": "float32"}, "float32")],
)
def test_limits(change: dict, words: str) -> None:
    fits = {"head_dim": 128, "group": 4, "page_size": 64, "dtype": "bfloat16", "kv_dtype": "bfloat16"}
    assert triton.limit(Problem(**fits)) is None
    assert words in (triton.limit(Problem(**fits | change)) or "")
    with pytest.raises(UnsupportedByBackend, match=words):
        choice.choose("triton", Problem(**fits | change), None)


def test_every_float8_is_widened_exactly() -> None:
    codes = np.arange(256, dtype=np.uint8)
    values = np.asarray(jax.lax.bitcast_convert_type(jnp.asarray(codes), jnp.float8_e4m3fn)).astype(np.float32)
    found = np.asarray(triton._widened(jnp.asarray(codes), jnp.bfloat16)).astype(np.float32)
    finite = np.isfinite(values)
    assert finite.sum() == 254
    np.testing.assert_array_equal(found[finite], values[finite])


def test_all_padding_is_zeros() -> None:
    q, pages = jnp.ones((4, 8, 64), jnp.bfloat16), jnp.ones((3, 2, 16, 64), jnp.bfloat16)
    tables, lengths = jnp.zeros((4, 2), jnp.int32), jnp.zeros(4, jnp.int32)
    assert not np.asarray(decode(q, Pages(pages, pages), tables, lengths, backend="triton", interpret=True)).any()
