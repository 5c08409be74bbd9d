"""What must hold for every architecture. A test class inherits it and gives a small `config.json`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxserve.checkpoints import config_from_hf, load, params_from_hf
from jaxserve.models import Decoder, ModelConfig, check_params, model_for, random_params
from jaxserve.models.contract import QuantArray, quantize
from jaxserve.models.dense_attention import dense_attention
from jaxserve.models.leaves import Leaf, matmul_flops, weight_bytes
from jaxserve.models.params import compute_dtype

TOKENS = np.arange(11, dtype=np.int32) * 5
POSITIONS = np.arange(11, dtype=np.int32)


class ModelSuite:
    hf_config: ClassVar[dict[str, Any]]

    @pytest.fixture
    def config(self) -> ModelConfig:
        return config_from_hf(self.hf_config)

    @pytest.fixture
    def model(self, config: ModelConfig) -> Decoder:
        return model_for(config)

    def test_everything_derives_from_the_leaves(self, model: Decoder, config: ModelConfig) -> None:
        leaves, abstract = model.leaves(config), model.abstract_params(config, jnp.bfloat16)
        check_params(abstract, config)
        assert jax.tree.structure(leaves) == jax.tree.structure(abstract)
        assert len(leaves["layers"]) == config.num_layers
        names = jax.tree.leaves(model.leaf_axes(config), is_leaf=lambda node: isinstance(node, tuple))
        for leaf, array, axes in zip(jax.tree.leaves(leaves), jax.tree.leaves(abstract), names, strict=True):
            assert leaf.shape == array.shape and array.dtype == jnp.bfloat16 and leaf.axes == axes
            assert leaf.shape == tuple(model.axes(config)[axis] for axis in axes) and set(leaf.fan_in) <= set(axes)

    def test_sources_fill_each_element_once(self, model: Decoder, config: ModelConfig) -> None:
        leaves = jax.tree.leaves(model.leaves(config))
        for leaf in leaves:
            filled = np.zeros(leaf.shape, np.int32)
            for source in leaf.sources:
                stored = np.ones(source.shape, np.int32)
                filled[source.index] += stored.reshape(source.split).transpose(source.turn)
            assert (filled == 1).all(), leaf.axes
        names = [source.name for leaf in leaves for source in leaf.sources]
        assert len(set(names)) == len(names)

    def test_stored_tensors_come_back(self, model: Decoder, config: ModelConfig, tmp_path: Path) -> None:
        params = random_params(config, seed=1, dtype=jnp.float32)
        tensors = stored_tensors(params, model.leaves(config))
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(self.hf_config))
        checkpoint = load(tmp_path, dtype="float32")
        assert checkpoint.config == config
        for found in (checkpoint.params, params_from_hf(tensors, config)):
            jax.tree.map(np.testing.assert_array_equal, found, params)

    def test_random_params_have_unit_gain(self, model: Decoder, config: ModelConfig) -> None:
        leaves, params = model.leaves(config), random_params(config, seed=2, dtype=jnp.float32)
        check_params(params, config)
        assert compute_dtype(params) == jnp.float32
        for leaf, array in zip(jax.tree.leaves(leaves), jax.tree.leaves(params), strict=True):
            if leaf.fan_in:
                assert abs(float(array.mean())) < 5 * leaf.inputs**-0.5 * leaf.size**-0.5
                assert float(array.std()) == pytest.approx(leaf.inputs**-0.5, rel=0.15)
            else:
                assert array.tolist() == np.full(leaf.shape, leaf.fill).tolist()

    def test_bytes_and_flops_are_those_of_the_arrays_and_the_program(self, model: Decoder, config: ModelConfig) -> None:
        leaves, params = model.leaves(config), random_params(config, seed=0, dtype=jnp.bfloat16)
        assert weight_bytes(leaves, jnp.bfloat16) == sum(array.nbytes for array in jax.tree.leaves(params))
        whole = jax.tree.map(lambda leaf: leaf.size if leaf.fan_in and leaf.share else 0, leaves)
        program = jax.make_jaxpr(lambda params: forward(model, config, params, keys_only))(params)
        assert matmul_work(program.jaxpr) == len(TOKENS) * 2 * sum(jax.tree.leaves(whole))
        shares = sum(leaf.size * leaf.share for leaf in jax.tree.leaves(leaves) if leaf.fan_in)
        assert matmul_flops(leaves) == pytest.approx(2 * shares)

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_activations_keep_the_weights_type_and_logits_are_float32(
        self, model: Decoder, config: ModelConfig, dtype: str
    ) -> None:
        """Shapes and types only, nothing is compiled."""

        def run(params: Any) -> tuple[jax.Array, jax.Array]:
            hidden = model.forward(params, config, TOKENS, POSITIONS, dense_attention(POSITIONS))
            return hidden, model.logits(params, config, hidden[-1:])

        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            hidden, logits = jax.eval_shape(run, model.abstract_params(config, dtype))
        assert (hidden.shape, str(hidden.dtype)) == ((len(TOKENS), config.hidden_size), dtype)
        assert (logits.shape, str(logits.dtype)) == ((1, config.vocab_size), "float32")

    def test_some_rows_end_as_they_would_among_all(self, model: Decoder, config: ModelConfig) -> None:
        params, rows = random_params(config, seed=1, dtype=jnp.float32), np.array([10, 0, 4, 4], np.int32)
        dense = dense_attention(POSITIONS)

        def attend(layer: int, q: Any, k: Any, v: Any, *, sliding_window: int | None) -> jax.Array:
            if q.shape[0] == k.shape[0]:
                return dense(layer, q, k, v, sliding_window=sliding_window)
            among_all = jnp.zeros((k.shape[0], *q.shape[1:])).at[rows].set(q)
            return dense(layer, among_all, k, v, sliding_window=sliding_window)[rows]

        @jax.jit
        def run(params: Any) -> tuple[jax.Array, jax.Array]:
            x = model.body(params, config, TOKENS, POSITIONS, attend)
            ending = model.ending(params, config, x, POSITIONS, attend, rows)
            return model.forward(params, config, TOKENS, POSITIONS, attend), ending

        whole, ending = run(params)
        np.testing.assert_allclose(ending, whole[rows], rtol=1e-5, atol=1e-5)

    def test_a_quantized_model_is_the_model_of_its_dequantized_weights(
        self, model: Decoder, config: ModelConfig
    ) -> None:
        params = random_params(config, seed=3, dtype=jnp.float32)
        small = jax.tree.map(quantized, model.leaves(config), params)
        exact = jax.tree.map(dequantized, small, is_leaf=is_quantized)
        assert compute_dtype(small) == jnp.float32 and jax.tree.structure(exact) == jax.tree.structure(params)
        run = jax.jit(lambda params: forward(model, config, params, dense_attention(POSITIONS)))
        found, expected = run(small), run(exact)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert np.abs(np.asarray(expected - run(params))).max() > 1e-3, "nothing was rounded"


def forward(model: Decoder, config: ModelConfig, params: Any, attend: Any) -> jax.Array:
    return model.logits(params, config, model.forward(params, config, TOKENS, POSITIONS, attend))


def keys_only(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, *, sliding_window: int | None) -> jax.Array:
    """An `attend` without a matmul."""
    return q + jnp.repeat(k + v, q.shape[1] // k.shape[1], axis=1)


def stored_tensors(params: Any, leaves: Any) -> dict[str, np.ndarray]:
    """The checkpoint that `params` come from: each source undone."""
    found: dict[str, np.ndarray] = {}
    for array, leaf in zip(jax.tree.leaves(params), jax.tree.leaves(leaves), strict=True):
        for source in leaf.sources:
            part = np.asarray(array)[source.index].transpose(np.argsort(source.turn))
            found[source.name] = np.ascontiguousarray(part.reshape(source.shape))
    return found


def quantized(leaf: Leaf, array: jax.Array) -> jax.Array | QuantArray:
    return quantize(array, tuple(leaf.axes.index(axis) for axis in leaf.fan_in)) if leaf.fan_in else array


def dequantized(array: jax.Array | QuantArray) -> jax.Array:
    return array.dequantized() if isinstance(array, QuantArray) else array


def is_quantized(node: object) -> bool:
    return isinstance(node, QuantArray)


def matmul_work(jaxpr: Any) -> int:
    """FLOPs of the products in a program and in the functions that it calls."""
    return sum(_work(equation) for equation in jaxpr.eqns)


def _work(equation: Any) -> int:
    if equation.primitive.name == "dot_general":
        (summed, _), _ = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * int(np.prod(equation.outvars[0].aval.shape)) * int(np.prod([shape[axis] for axis in summed]))
    return sum(matmul_work(inner) for inner in _called(equation))


def _called(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            yield inner
