"""`jaxserve calibrate`: a cost model of this machine's own steps."""

import pytest

from jaxserve.cli import main
from jaxserve.costs.file import load_cost
from jaxserve.costs.fitted import FittedCost

SMALL = [
    "--num-blocks", "64", "--block-size", "16", "--max-num-seqs", "4", "--max-num-batched-tokens", "64",
    "--decode-buckets", "4", "--mixed-decode-buckets", "4", "--prefill-buckets", "64", "--max-model-len", "96",
]  # fmt: skip


@pytest.mark.slow
def test_it_times_learns_and_writes(tmp_path, capsys, compilation_cache: str) -> None:
    out = tmp_path / "cost.json"
    arguments = ["calibrate", str(out), "--rounds", "2", "--requests", "6", *SMALL]
    assert main([*arguments, "--compilation-cache-dir", compilation_cache]) == 0
    text = capsys.readouterr().out
    assert "error on held-out steps: median" in text
    assert "KV pool: 64 blocks of 16 tokens: --num-blocks 64 to simulate it\n" in text
    model = load_cost(out)
    assert isinstance(model, FittedCost) and model.num_observed > 0
    assert model.source.startswith("measured: embedded on cpu (") and ", JAX " in model.source


@pytest.mark.parametrize("flag", ["--rounds", "--requests"])
def test_too_little_is_refused(tmp_path, capsys, flag: str) -> None:
    assert main(["calibrate", str(tmp_path / "c.json"), flag, "0"]) == 2
    assert "at least" in capsys.readouterr().err
