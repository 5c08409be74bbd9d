"""Loading a Hugging Face directory: whole, sharded, cast, frugal with memory; and what is wrong with a bad one."""

import json
import shutil
import struct
import tracemalloc
import weakref
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxserve.checkpoints import load
from jaxserve.checkpoints.hf_config import config_from_directory
from jaxserve.checkpoints.safetensors_files import INDEX, TensorFiles
from jaxserve.checkpoints.weights import load_params
from jaxserve.core.errors import CheckpointError, ConfigError
from jaxserve.models import check_params

FIXTURE = Path(__file__).parents[1] / "fixtures" / "llama3.1"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def directory(tmp_path) -> Path:
    """A copy of a good checkpoint, to be spoilt."""
    copy = tmp_path / "model"
    shutil.copytree(FIXTURE, copy)
    return copy


def rewrite(directory: Path, change) -> None:
    """Save the weights again after `change(tensors)`."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def split(directory: Path, shards: int = 3) -> dict[str, str]:
    """Turn the one file into shards with an index; returns the index's weight map."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, directory / file)
        weight_map |= dict.fromkeys(part, file)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def assert_same(found, expected) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def refused(directory: Path, *parts: str) -> None:
    """Loading fails with one error that says all of `parts`."""
    with pytest.raises(CheckpointError) as caught:
        load(directory)
    for part in parts:
        assert part in str(caught.value)


def test_a_fused_leaf_holds_each_kv_heads_queries_key_and_value():
    checkpoint = load(FIXTURE)
    check_params(checkpoint.params, checkpoint.config)
    tensors = load_file(FIXTURE / "model.safetensors")
    wqkv = np.asarray(checkpoint.params["layers"][1]["wqkv"])  # [D, K, G + 2, H] with K = G = 2
    per_head = {kind: tensors[f"model.layers.1.self_attn.{kind}_proj.weight"].reshape(-1, 16, 32) for kind in "qkv"}
    np.testing.assert_array_equal(wqkv[:, 1, 0], per_head["q"][2].T)
    np.testing.assert_array_equal(wqkv[:, 1, 2], per_head["k"][1].T)
    np.testing.assert_array_equal(wqkv[:, 0, 3], per_head["v"][0].T)
    assert checkpoint.directory == FIXTURE


def test_shards_load_as_the_whole_file_does(directory):
    split(directory)
    assert_same(load(directory).params, load(FIXTURE).params)


def test_a_single_file_may_have_any_name(directory):
    (directory / "model.safetensors").rename(directory / "weights.safetensors")
    assert_same(load(directory).params, load(FIXTURE).params)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_cast_to_the_asked_type(dtype):
    cast = load(FIXTURE, dtype=dtype).params
    assert_same(cast, jax.tree.map(lambda leaf: leaf.astype(dtype), load(FIXTURE, dtype="float32").params))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(cast)} == {dtype}


def test_stored_bfloat16_widens_exactly_and_the_cpus_default_is_float32(directory):
    def narrow(tensors):
        for name in tensors:
            tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)

    rewrite(directory, narrow)
    params = load(directory).params
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"float32"}
    assert_same(params, jax.tree.map(lambda leaf: leaf.astype("float32"), load(FIXTURE, dtype="bfloat16").params))


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ConfigError, match=r"'int8'.*float32, bfloat16"):
        load(FIXTURE, dtype="int8")


def test_tensors_that_nothing_reads_are_left_alone(directory):
    rewrite(directory, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}))
    load(directory)
    tied = directory.parent / "tied"
    shutil.copytree(FIXTURE.parent / "llama3.2", tied)
    rewrite(tied, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    assert "lm_head" not in load(tied).params


def test_end_of_sequence_ids_of_both_files_count(directory):
    (directory / "generation_config.json").write_text('{"eos_token_id": [7, 2]}')
    assert load(directory).config.eos_token_ids == (2, 7)


def test_host_memory_never_holds_a_second_leaf():
    """Leaves are handed over one at a time, and the loader lets each go before it builds the next."""
    config = config_from_directory(FIXTURE)
    alive: list[weakref.ref] = []
    sizes: list[int] = []

    def place(leaf, axes):
        assert len(axes) == leaf.ndim
        assert not any(ref() is not None for ref in alive)
        alive.append(weakref.ref(leaf))
        sizes.append(leaf.nbytes)

    with TensorFiles(FIXTURE) as files:
        load_params(files, config, np.dtype(np.float32), place)  # fill caches, so that the count below is of arrays
        largest, total = max(sizes), sum(sizes)
        tracemalloc.start()
        load_params(files, config, np.dtype(np.float32), place)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2 * largest + 30_000 < total


def test_a_missing_tensor_is_named_with_its_shape(directory):
    rewrite(directory, lambda t: t.pop(Q_PROJ))
    refused(directory, str(directory), f"tensor {Q_PROJ} is missing", "expected shape [64, 32]")


def test_a_missing_head_is_told_how_it_may_be_tied(directory):
    rewrite(directory, lambda t: t.pop("lm_head.weight"))
    refused(directory, "tensor lm_head.weight is missing", "tie_word_embeddings true")


def test_an_unexpected_tensor_is_named_with_its_file(directory):
    rewrite(directory, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)}))
    refused(directory, "model.safetensors", "unexpected tensor model.layers.0.self_attn.q_proj.bias")


def test_a_shape_that_does_not_match_is_named_with_both_shapes(directory):
    rewrite(directory, lambda t: t.update({Q_PROJ: t[Q_PROJ][:48]}))
    refused(directory, "model.safetensors", Q_PROJ, "[48, 32]", "expected [64, 32]")


def test_a_tensor_type_that_is_not_supported_is_named(directory):
    rewrite(directory, lambda t: t.update({Q_PROJ: np.zeros((64, 32), np.int8)}))
    refused(directory, "model.safetensors", Q_PROJ, "type I8", "F32, BF16, F16")


def test_a_checkpoint_of_another_depth_is_refused(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    refused(directory, "unexpected tensor model.layers.1.")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data + b"more",
        lambda data: b"",
        lambda data: b"\x80\x04pickle" + data[8:],
        lambda data: struct.pack("<Q", 1 << 60) + data[8:],
        lambda data: data[:8] + b"not json" + data[16:],
    ],
    ids=["truncated", "too long", "empty", "garbage", "huge header", "bad header"],
)
def test_a_corrupt_file_is_named(directory, spoil):
    path = directory / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    refused(directory, str(path), "not a whole safetensors file", "download the file again")


def test_a_missing_shard_is_named(directory):
    split(directory)
    (directory / "model-00002-of-00003.safetensors").unlink()
    refused(directory, "model-00002-of-00003.safetensors", "no such file", INDEX)


def test_an_index_that_disagrees_with_its_shards_is_refused(directory):
    weight_map = split(directory)
    wrong = next(file for file in sorted(set(weight_map.values())) if file != weight_map[Q_PROJ])
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map | {Q_PROJ: wrong}}))
    refused(directory, wrong, f"tensor {Q_PROJ} is not in it")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'], ids=lambda text: text or "empty"
)
def test_an_index_that_is_none_is_refused(directory, content):
    split(directory)
    (directory / INDEX).write_text(content)
    refused(directory, INDEX, "not an index", "weight_map")


@pytest.mark.parametrize("file", ["../outside.safetensors", "/etc/passwd", "pytorch_model.bin"])
def test_an_index_reaches_no_other_file(directory, file):
    weight_map = split(directory)
    (directory / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(weight_map, file)}))
    refused(directory, INDEX, Path(file).name, "safetensors files beside the index")


def test_several_files_without_an_index_are_refused(directory):
    split(directory)
    (directory / INDEX).unlink()
    refused(directory, "3 safetensors files", f"no {INDEX}")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_a_pickle_is_never_opened(directory, name):
    (directory / "model.safetensors").rename(directory / name)
    refused(directory, name, "pickle", "save_pretrained")


def test_a_directory_without_weights_or_config_is_refused(directory):
    (directory / "model.safetensors").unlink()
    refused(directory, str(directory), "no weights", "model.safetensors")
    (directory / "config.json").unlink()
    refused(directory, "config.json", "cannot be read")


@pytest.mark.parametrize(("content", "found"), [("{", "not JSON"), ("[1]", "holds a list")])
def test_a_config_that_is_no_object_is_refused(directory, content, found):
    (directory / "config.json").write_text(content)
    refused(directory, "config.json", found)


def test_a_path_that_is_no_directory_is_refused(directory):
    refused(directory / "model.safetensors", "a file", "expected the directory")
    refused(directory / "nothing" / "here", "no such directory")
