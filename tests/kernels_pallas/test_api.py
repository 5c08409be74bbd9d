"""What does not fit is refused by name; `auto` picks by the GPU's generation; debug looks into the tables."""

import types
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.paged_attention import UnsupportedByBackend, api, choice, decode, prefill
from kernels_pallas.paged_attention.cases import draw, relative_error
from kernels_pallas.paged_attention.options import Problem
from kernels_pallas.pages import Pages
from tests.kernels_pallas.backend_suite import compute

K, G, H, S, P, W = 2, 3, 16, 8, 48, 6
N = K * G
PAGES = {"keys": (P, K, S, H), "values": (P, K, S, H)}
PROBLEM = Problem(head_dim=128, group=4, page_size=64, dtype="bfloat16", kv_dtype="bfloat16")


def given(**change: Any) -> dict[str, Any]:
    """Arguments of `decode` that fit; `change` gives one, or a field of Pages, another shape, or (shape, dtype)."""
    integers = {"tables": (4, W), "lengths": (4,)}
    shapes: dict[str, Any] = {"q": (4, N, H), **PAGES, **integers} | change
    kinds = {name: jnp.int32 if name in integers else jnp.float32 for name in shapes}
    parts = {name: s if isinstance(s[-1], str) else (s, kinds[name]) for name, s in shapes.items()}
    arrays = {name: jnp.zeros(shape, dtype) for name, (shape, dtype) in parts.items()}
    pages = Pages(**{name: arrays.pop(name) for name in Pages._fields if name in arrays})
    return arrays | {"pages": pages}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": (4, 5, H)}, "heads"), ({"q": (4, N, 32)}, "head dimension"), ({"q": (4, H)}, "q must be"),
        ({"values": (P, K, S, 32)}, "pages.values"), ({"lengths": (3,)}, "lengths"),
        ({"tables": (3, W)}, "tables"), ({"sinks": (2,)}, "sinks"),
        ({"q": ((4, N, H), "bfloat16")}, "one floating type"), ({"q": ((4, N, H), "int32")}, "q "),
        ({"key_scales": (P, K)}, "pages.key_scales are given"), ({"lengths": ((4,), "int16")}, "lengths"),
        ({"keys": ((P, K, S, H), "int8"), "values": ((P, K, S, H), "int8")}, "pages.key_scales are needed"),
        ({"keys": ((P, K, S, H), "int8"), "values": ((P, K, S, H), "int8"), "key_scales": (P, K),
          "value_scales": (K, P)}, "pages.value_scales must be"),
        ({"keys": (P, S, H), "values": (P, S, H)}, "pages.keys must be"), ({"sinks": (1, N)}, "sinks must be"),
        ({"sinks": ((N,), "int32")}, "sinks must be"), ({"tables": ((4, W), "float32")}, "tables must be"),
        ({"q": (0, N, H), "tables": (0, W), "lengths": (0,)}, "q .* something in every dimension"),
        ({"keys": (P, 0, S, H), "values": (P, 0, S, H)}, "pages.keys .* something in every dimension"),
        ({"keys": (P, K, 0, H), "values": (P, K, 0, H)}, "pages.keys .* something in every dimension"),
        ({"tables": (4, 0)}, "tables .* something in every dimension"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(change: dict, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        decode(**given(**change))


@pytest.mark.parametrize("name", ["q", "tables", "lengths", "sinks"])
@pytest.mark.parametrize("value", [[0.0], 3, "x"])
def test_what_is_no_array_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be an array"):
        decode(**given() | {name: value})


@pytest.mark.parametrize("name", ["keys", "values"])
def test_pages_that_are_no_arrays_are_refused_by_name(name: str) -> None:
    arguments = given()
    with pytest.raises(TypeError, match=rf"^pages\.{name} must be an array"):
        decode(**arguments | {"pages": arguments["pages"]._replace(**{name: [0.0]})})
    with pytest.raises(TypeError, match=r"^pages must be kernels_pallas\.pages\.Pages, not tuple"):
        decode(**arguments | {"pages": tuple(arguments["pages"])})


def given_to_prefill(**change: Any) -> dict[str, Any]:
    """Arguments of `prefill` that fit, but for `change`."""
    arguments = given() | {"offsets": jnp.zeros(5, jnp.int32), "context_lengths": jnp.zeros(4, jnp.int32)}
    del arguments["lengths"]
    return arguments | change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"offsets": (4,)}, "offsets must be"), ({"context_lengths": (5,)}, "context_lengths must be"),
        ({"tables": (0, W)}, "tables .* something in every"),
        ({"tables": (4, W, 1)}, "tables must be"),
    ],
)  # fmt: skip
def test_what_does_not_fit_a_prefill_is_refused_by_name(change: dict, words: str) -> None:
    wrong = {name: jnp.zeros(shape, jnp.int32) for name, shape in change.items()}
    with pytest.raises((ValueError, TypeError), match=words):
        prefill(**given_to_prefill(**wrong))


@pytest.mark.parametrize("name", ["offsets", "context_lengths"])
def test_prefill_refuses_what_is_no_array_or_of_another_type(name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be an array"):
        prefill(**given_to_prefill(**{name: [0] * 5}))
    with pytest.raises(ValueError, match=f"^{name} must be .* float32"):
        prefill(**given_to_prefill(**{name: jnp.zeros(5 if name == "offsets" else 4)}))


def test_a_prefill_of_no_queries_is_refused() -> None:
    with pytest.raises(ValueError, match=r"q .* something in every dimension"):
        prefill(**given_to_prefill(q=jnp.zeros((0, N, H))))


@pytest.mark.parametrize(
    "option",
    [{"sliding_window": 0}, {"sliding_window": 1 << 31}, {"soft_cap": 0.0}, {"soft_cap": np.inf}, {"soft_cap": np.nan},
     {"backend": "cudnn"}, {"scale": np.inf}],
)  # fmt: skip
def test_options_out_of_range(option: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        decode(**given(), **option)


@pytest.mark.parametrize(
    "option",
    [{"sliding_window": 1.5}, {"sliding_window": True}, {"sliding_window": "3"}, {"soft_cap": "x"}, {"scale": "x"},
     {"scale": np.ones(2)}],
)  # fmt: skip
def test_options_that_are_no_numbers(option: dict) -> None:
    with pytest.raises(TypeError, match=f"^{next(iter(option))} must be a"):
        decode(**given(), **option)


def test_an_option_that_is_traced_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"^scale must be a number, known when the program is traced"):
        jax.jit(lambda scale: decode(**given(), scale=scale))(0.5)


def backends(monkeypatch: pytest.MonkeyPatch, **limits: str | None) -> None:
    modules = {name: types.SimpleNamespace(limit=lambda problem, said=said: said) for name, said in limits.items()}
    monkeypatch.setattr(choice, "module_of", modules.__getitem__)


@pytest.mark.parametrize(
    ("capability", "name"),
    [((9, 0), "mosaic_gpu"), ((8, 0), "triton"), ((8, 9), "triton"), ((7, 5), "reference"), ((10, 0), "reference"),
     (None, "reference")],
)  # fmt: skip
def test_auto_goes_by_the_generation(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None, name: str
) -> None:
    backends(monkeypatch, mosaic_gpu=None, triton=None, reference=None)
    left_to_xla = capability is not None and name == "reference"
    with pytest.warns(UserWarning, match=r"no kernel is made for .* (7\.5|10\.0)") if left_to_xla else nullcontext():
        assert choice.choose("auto", PROBLEM, capability) == name


@pytest.mark.parametrize(
    ("backend", "capability"), [("mosaic_gpu", (8, 0)), ("mosaic_gpu", (10, 0)), ("mosaic_gpu", (12, 0)),
                                ("triton", (7, 5))],
)  # fmt: skip
def test_a_gpu_of_another_generation_is_a_limit(backend: str, capability: tuple[int, int]) -> None:
    with pytest.raises(
        UnsupportedByBackend, match=rf"'{backend}' cannot .* capability {capability[0]}\.{capability[1]}"
    ):
        choice.choose(backend, PROBLEM, capability)


@pytest.mark.parametrize(
    ("backend", "capability"), [("mosaic_gpu", (9, 0)), ("mosaic_gpu", None), ("triton", (8, 6)), ("triton", (9, 0)),
                                ("triton", None), ("reference", (7, 5))],
)  # fmt: skip
def test_a_named_backend_is_taken_where_it_can_run(backend: str, capability: tuple[int, int] | None) -> None:
    assert choice.choose(backend, PROBLEM, capability) == backend


def test_a_named_backend_is_held_against_the_device_unless_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's generation counts for what is launched there, not for the interpreter."""
    monkeypatch.setattr(api, "device_capability", lambda: (8, 0))
    case = draw("decode", 3, head_dim=64, dtype="bfloat16", page_size=16, rows=5, group=1, kv_heads=1, plain=True)
    with pytest.raises(UnsupportedByBackend, match=r"compute capability 9\.0 \(H100, H200\), and this GPU has .* 8\.0"):
        compute(case, "mosaic_gpu")
    compute(case, "mosaic_gpu", interpret=True)


def test_auto_falls_back_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    backends(monkeypatch, mosaic_gpu="head dimension 80 is none of 64, 128", triton="group 32", reference=None)
    with pytest.warns(UserWarning, match=r"'reference': mosaic_gpu: head dimension 80 .*; triton: group 32"):
        assert choice.choose("auto", PROBLEM, (9, 0)) == "reference"


def test_pages_of_eight_are_left_to_other_kernels_than_mosaic() -> None:
    """Those that `block_size` allows, on an H100 or H200."""
    problem = Problem(128, 4, 8, "bfloat16", "bfloat16")
    with pytest.warns(UserWarning, match="'triton': mosaic_gpu: page size 8 is none of 16, 32, 64, 128"):
        assert choice.choose("auto", problem, (9, 0)) == "triton"
    assert choice.choose("auto", problem, (8, 0)) == "triton" and choice.choose("auto", problem, None) == "reference"
    with pytest.raises(UnsupportedByBackend, match="page size 8"):
        choice.choose("mosaic_gpu", problem, (9, 0))


def test_a_named_backend_says_which_limit_was_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    backends(monkeypatch, mosaic_gpu="head dimension 80 is none of 64, 128", reference=None)
    with pytest.raises(UnsupportedByBackend, match=r"'mosaic_gpu' cannot .* head dimension 80 .* backend='reference'"):
        choice.choose("mosaic_gpu", PROBLEM, (9, 0))


def test_a_cpu_has_no_capability() -> None:
    assert choice.device_capability() is None


WRONG = [
    ("tables", "tables.*2 of them"), ("long", "lengths.*1 of them"), ("negative", "lengths.*1 of them"),
]  # fmt: skip


def spoilt(what: str) -> dict[str, Any]:
    arguments = given()
    tables, lengths = np.zeros((4, W), np.int32), np.array([0, 1, S, 3 * S + 1], np.int32)
    if what == "tables":
        tables[3, 3], tables[2, 0] = P, -1
        tables[3, 4] = P + 7  # past the row's tokens: nobody reads it
    elif what != "fine":
        lengths[0] = W * S + 1 if what == "long" else -1
    return arguments | {"tables": jnp.asarray(tables), "lengths": jnp.asarray(lengths)}


@pytest.mark.parametrize(("what", "words"), WRONG)
def test_debug_finds_wrong_tables(what: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decode(**spoilt(what), debug=True)


@pytest.mark.parametrize(("what", "words"), WRONG)
def test_debug_finds_wrong_tables_inside_a_program(what: str, words: str) -> None:
    run = jax.jit(lambda arguments: decode(**arguments, debug=True))
    with pytest.raises(Exception, match=words):
        jax.block_until_ready(run(spoilt(what)))
        jax.effects_barrier()


def test_debug_finds_wrong_offsets() -> None:
    tables, q = jnp.zeros((2, W), jnp.int32), jnp.zeros((4, N, H))
    pages = Pages(jnp.zeros((P, K, S, H)), jnp.zeros((P, K, S, H)))
    for offsets, context, words in [
        ([0, 3, 2], [3, 3], "offsets"), ([0, 2, 5], [9, 9], "offsets"),
        ([1, 2, 3], [9, 9], "offsets"), ([0, 3, 4], [2, 9], "context_lengths"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=words):
            prefill(q, pages, tables, jnp.asarray(offsets, jnp.int32), jnp.asarray(context, jnp.int32), debug=True)


def test_debug_changes_no_answer() -> None:
    for kind in ("decode", "prefill"):
        case = draw(kind, 7, head_dim=64, dtype="float32", page_size=16)
        assert relative_error(case, compute(case, "reference", debug=True)) < 2e-5
