"""Rooflines: by hand, near the nominal figures, and marked as what they are."""

import json
from pathlib import Path

import pytest

from jaxserve.core.errors import ConfigError
from jaxserve.costs.file import load_cost
from jaxserve.costs.model import FormulaCost
from jaxserve.costs.roofline import Machine, ModelSize, parse_roofline, roofline

LLAMA_8B = {
    "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "model_type": "llama", "head_dim": None,
}  # fmt: skip
COSTS = Path(__file__).parent.parent.parent / "configs" / "cost"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "llama_8b.json"
    path.write_text(json.dumps(LLAMA_8B))
    return path


def test_a_size_by_hand(tmp_path: Path) -> None:
    """1 layer of width 4, 2 heads of 2 sharing 1 K/V head, feed-forward 8, vocabulary 10."""
    stored = {
        "num_hidden_layers": 1, "hidden_size": 4, "intermediate_size": 8, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 10,
    }  # fmt: skip
    (path := tmp_path / "config.json").write_text(json.dumps(stored))
    size = ModelSize.from_file(path)
    assert size.matmul_parameters == 4 * (2 * 2 + 2 * 2 + 2 * 2) + 3 * 4 * 8 + 4 * 10 == 184
    assert size.parameters == 184 + 40 and size.kv_bytes_per_token(2) == 2 * 2 * 2
    machine = Machine(
        name="m", bandwidth=100.0, matmul=1000.0, bandwidth_efficiency=0.5, matmul_efficiency=0.5,
        attention_efficiency=0.1, host_bandwidth=4.0, overhead_s=0.25, row_s=0.125,
    )  # fmt: skip
    cost = roofline(size, machine, "x")
    assert cost.weights_s == 448 / 50 and cost.token_s == 368 / 500
    assert cost.pair_s == 4 * 2 * 2 / 100 and cost.context_s == 8 / 50
    assert cost.move_s_per_token == 2.0 and (cost.overhead_s, cost.row_s) == (0.25, 0.125)


def test_it_is_marked_as_a_roofline_and_near_the_nominal_figures(config: Path) -> None:
    cost = parse_roofline(f"{config},bandwidth=4.3e12,matmul=790e12,name=H200")
    assert cost.source.startswith("roofline, not measured: llama_8b (8.03B parameters) on H200")
    nominal = load_cost(COSTS / "h200_8b_nominal.json")
    assert isinstance(nominal, FormulaCost)
    for name in ("weights_s", "token_s", "pair_s", "context_s", "move_s_per_token"):
        assert getattr(cost, name) == pytest.approx(getattr(nominal, name), rel=0.15), name
    assert cost.kv_bytes_per_token == nominal.kv_bytes_per_token


def test_a_file_with_the_usual_name_is_named_by_its_folder(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = config.rename(config.with_name("config.json"))
    monkeypatch.chdir(config.parent)
    for path in (usual, "config.json"):
        source = parse_roofline(f"{path},bandwidth=4.3e12,matmul=790e12").source
        assert source.startswith(f"roofline, not measured: {config.parent.name} (8.03B parameters)")


def test_the_shipped_roofline_is_what_the_formula_gives(config: Path) -> None:
    made = parse_roofline(f"{config},bandwidth=4.3e12,matmul=790e12,name=H200")
    assert load_cost(COSTS / "h200_8b_roofline.json") == made


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("none.json,bandwidth=1,matmul=1", "none.json: cannot be read"),
        ("{},bandwidth=1", "matmul=NUMBER too"),
        ("{},bandwidth=1,matmul=fast", "'matmul=fast': give NAME=NUMBER"),
        ("{},bandwidth=1,matmul=1,color=2", "'color=2'"),
        ("{},bandwidth=0,matmul=1", "bandwidth = 0.0"),
        ("{},bandwidth=inf,matmul=1", "bandwidth = inf"),
        ("{},bandwidth=1,matmul=nan", "matmul = nan"),
        ("{},bandwidth=1,matmul=1,row_s=-1", "row_s = -1.0 cannot work: give seconds, or 0"),
        ("{},bandwidth=1,matmul=1,matmul_efficiency=2", "a share up to 1"),
    ],
)
def test_what_cannot_be_read_is_said(config: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_roofline(text.format(config))


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA_8B | {"intermediate_size": None}))
    with pytest.raises(ConfigError, match="intermediate_size = None"):
        ModelSize.from_file(path)
    path.write_text(json.dumps(LLAMA_8B | {"tie_word_embeddings": 1}))
    with pytest.raises(ConfigError, match="tie_word_embeddings = 1: expected true or false"):
        ModelSize.from_file(path)
