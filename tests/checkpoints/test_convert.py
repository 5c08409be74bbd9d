"""Orbax checkpoints: what convert writes, load reads."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

from jaxserve.checkpoints import convert, load
from jaxserve.core.errors import CheckpointError

FIXTURE = Path(__file__).parents[1] / "fixtures" / "qwen3"

# Orbax gives up at the first array that cannot be read; the others' failures come back to a loop that is closed by then
pytestmark = pytest.mark.filterwarnings(
    "ignore:(?s)Exception ignored.*Event loop is closed:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    source = tmp_path_factory.mktemp("convert") / "source"
    shutil.copytree(FIXTURE, source)
    (source / "tokenizer.json").write_text('{"version": "1.0"}')
    (source / "chat_template.jinja").write_text("{{ messages }}")
    destination = source.parent / "converted"
    convert(source, destination)
    return destination


@pytest.fixture
def copy(converted, tmp_path) -> Path:
    """A converted checkpoint to be spoilt."""
    return Path(shutil.copytree(converted, tmp_path / "copy"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_converted_checkpoint_loads_the_same_parameters(converted, dtype):
    found, expected = load(converted, dtype=dtype), load(FIXTURE, dtype=dtype)
    assert found.config == expected.config
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    shardings = {str(leaf.sharding) for leaf in jax.tree.leaves((found.params, expected.params))}
    assert len(shardings) == 1


def test_the_tokenizers_files_come_along_and_the_weights_do_not(converted):
    names = {path.name for path in converted.iterdir()}
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "params"} <= names
    assert not list(converted.rglob("*.safetensors*"))
    assert not list(converted.parent.glob("*.partial"))


@pytest.mark.parametrize("norms", ["float32", "bfloat16"])
def test_converted_weights_keep_every_bit(tmp_path, norms):
    """Also where a file has matrices of bfloat16 and norms of float32; in its own type where it has one."""
    source = Path(shutil.copytree(FIXTURE, tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    stored = {name: tensor.astype(norms if "norm" in name else "bfloat16") for name, tensor in tensors.items()}
    save_file(stored, source / "model.safetensors")
    convert(source, tmp_path / "new")
    found, expected = load(tmp_path / "new"), load(source)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.metadata(tmp_path / "new" / "params").item_metadata.tree
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(tree)} == {norms}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"hidden_size": 48}, r"params['embed']: found shape (96, 32), expected an array of shape (96, 48)"),
        ({"num_hidden_layers": 3, "layer_types": None}, r"params['layers'][2]['attn_norm'] is missing"),
        ({"tie_word_embeddings": True}, r"params['lm_head'] is unexpected"),
    ],
)
def test_another_configuration_is_refused(copy, change, found):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError) as caught:
        load(copy)
    assert found in str(caught.value)


@pytest.mark.parametrize("name", ["manifest.ocdbt", "_METADATA"])
def test_an_incomplete_checkpoint_is_refused(copy, name):
    (copy / "params" / name).unlink()
    with pytest.raises(CheckpointError, match=f"not a whole checkpoint .*{name}"):
        load(copy)


def test_cut_files_are_refused(copy):
    for path in (copy / "params").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        load(copy)


def test_a_checkpoint_without_parameters_is_refused(copy):
    shutil.rmtree(copy / "params")
    with pytest.raises(CheckpointError, match="no weights"):
        load(copy)


def test_a_file_in_the_way_is_named_before_anything_is_read(tmp_path):
    (tmp_path / "file").touch()
    for below in ("x", "x/y"):
        with pytest.raises(CheckpointError, match="file is not a directory"):
            convert("/no/such/model", tmp_path / "file" / below)


def test_what_cannot_be_written_is_said(tmp_path, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(CheckpointError, match=r"cannot be written \(No space left"):
        convert(FIXTURE, tmp_path / "new")


def test_convert_overwrites_nothing_and_converts_once(converted, tmp_path):
    with pytest.raises(CheckpointError, match="exists already"):
        convert(FIXTURE, converted)
    with pytest.raises(CheckpointError, match="converted already"):
        convert(converted, tmp_path / "again")
    assert not (tmp_path / "again").exists()
