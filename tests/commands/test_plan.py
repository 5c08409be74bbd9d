"""`jaxserve plan` says what fits, marks estimates, and refuses what cannot be."""

import json
from pathlib import Path

import pytest

from jaxserve.checkpoints import hub
from jaxserve.cli import main

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128_256, "hidden_size": 4096,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14_336,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))
    return str(path)


@pytest.mark.parametrize("place", ["file", "directory"])
def test_an_estimate_is_marked(model: str, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = model if place == "file" else str(Path(model).parent)
    assert main(["plan", "--model", given, "--target", "a100", "--estimate", "--length", "2048"]) == 0
    text = capsys.readouterr().out
    assert "1 x NVIDIA A100-SXM4-80GB (AN ESTIMATE)" in text and "weights            14.96 GiB" in text
    assert "of    2048 tokens:     64, bound by max_num_seqs" in text and "estimated" in text


def test_more_gpus_are_an_estimate_too(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", model, "--tensor-parallel", "4"]) == 0
    text = capsys.readouterr().out
    assert "weights             3.74 GiB" in text and "An estimate: the engine runs on one GPU yet." in text


def test_of_a_hub_id_only_the_configuration_is_asked(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(hub, "resolve", lambda *args, **options: asked.append((*args, options)) or Path(model).parent)
    assert main(["plan", "--model", "someone/llama", "--revision", "v2", "--target", "h200", "--estimate"]) == 0
    assert asked == [("someone/llama", {"revision": "v2", "part": "config"})]
    assert "LlamaForCausalLM" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "h900"], "'h900' is not known"), (["--tensor-parallel", "3"], "divisor of the 8"),
        (["--tensor-parallel", "0"], "tensor_parallel = 0"), (["--length", "0"], "length = 0"),
        (["--max-model-len", "9000"], "at most 8192"), (["--model", "./nothing"], "no such directory"),
        (["--model", str(Path(__file__).parent), "--revision", "v1"], "belong to hub ids"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    model: str, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--model", model, "--estimate", *options]) == 2
    assert words in capsys.readouterr().err
