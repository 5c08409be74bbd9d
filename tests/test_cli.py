"""The command line: it teaches, it refuses in one line, and it runs the model that ships with the package."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

import httpx
import pytest

from jaxserve.cli import main
from jaxserve.core.config import all_settings
from jaxserve.core.sampling import SamplingParams
from jaxserve.llm import LLM
from tests.server.conftest import FEW_PROGRAMS, PATIENCE_S, SMALL, wait_for

ROOT = Path(__file__).parent.parent


def test_help_shows_every_setting_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and "curl" in text
    assert all("--" + setting.name.replace("_", "-") in text for setting in all_settings())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "--config", "nowhere.toml"], "cannot be read"),
        (["generate", "--prompt", "x", "--model", "/no/such/model"], "/no/such/model"),
        (["generate", "--prompt", "x", "--block-size", "33"], "block_size"),
        (["generate", "--prompt", "x", "--max-model-len", "1000000"], "max_model_len"),
        (["generate", "--prompt", "x", "--temperature", "-1"], "temperature"),
        (["generate", "--prompt", "x", "--n", "0"], "n = 0"),
        (["generate", "--prompt", "x", "--revision", "v1"], "revision"),
        (["generate", "--prompt", "x", "--skip-tokenizer-init"], "skip_tokenizer_init = True cannot work: give false"),
        (["generate", "--prompt", "x", "--attention-backend", "triton"], "attention_backend = 'triton'"),
        (["convert", "/no/such/model", __file__ + "/below"], "test_cli.py is not a directory"),
        (["generate", "--prompt", "x", "--max-model-len", "0"], "max_model_len"),
        (["generate", "--prompt", "x", "--compile-threads", "-1"], "compile_threads"),
        (["generate", "--config", str(ROOT / "jaxserve" / "embedded" / "model.safetensors")], "not TOML"),
        (["convert", "/no/such/model", "not-there-yet"], "/no/such/model"),
        (["serve", "--record-tokens"], "record_tokens: there is no record: give --record FILE"),
    ],
)
def test_what_the_caller_can_fix_is_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], compilation_cache: str
) -> None:
    if arguments[0] == "generate":
        arguments = [*arguments, "--compilation-cache-dir", compilation_cache]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxserve: ") and words in error and "Traceback" not in error


def test_every_command_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("serve", "generate", "convert"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert f"  jaxserve {command} " in capsys.readouterr().out.partition("examples:")[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["simulate", "--requests", "1e3"],
            "argument --requests: invalid int value: '1e3': see jaxserve simulate",
        ),
        (
            ["simulate", "--num_blocks=4"],
            "--num_blocks=4 is not known (did you mean --num-blocks?): see",
        ),
        (
            ["serve", "--enable_prefix_caching"],
            "serve: --enable_prefix_caching is not known (did you mean --enable-",
        ),
        (["buckets", "zzz"], "buckets: zzz is not known: see jaxserve buckets --help"),
        (["simulate", "--porte=80"], "simulate: --porte=80 is not known: see"),
        (["tune", "--no-log-text"], "tune: --no-log-text is a flag of jaxserve serve alone"),
        (
            ["generate", "--port", "9000"],
            "generate: --port is a flag of jaxserve serve alone: see jaxserve generate --help",
        ),
        (["simulate", "--batch-dir", "x"], "simulate: --batch-dir is a flag of jaxserve serve alone"),
        (["simulat"], "invalid choice: 'simulat'"),
        ([], "the following arguments are required: COMMAND: see jaxserve --help"),
    ],
)
def test_a_flag_that_is_wrong_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and words in error


@pytest.mark.parametrize("arguments", [["simulate", "--help"], ["simulate", "--num-blocks=40", "--requests=3"]])
def test_whoever_has_seen_enough_may_go(arguments: list[str]) -> None:
    """As in `jaxserve simulate .. | head`: no traceback."""
    command = [sys.executable, "-m", "jaxserve.cli", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode in ((0, 141) if "--help" in arguments else (141,))  # argparse may keep it to itself


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["serve", "--help"], ["convert", "--help"]])
def test_help_loads_neither_jax_nor_a_web_server(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom jaxserve.cli import main\n"
        f"try: main({arguments})\nexcept SystemExit: print('loaded', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.rpartition("loaded")[2].split()}
    assert "jaxserve" in loaded and not loaded & {"jax", "jaxlib", "flax", "starlette", "uvicorn"}


def test_generate_has_a_flag_for_every_field_of_sampling(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    text = capsys.readouterr().out
    fields = {field.name for field in dataclasses.fields(SamplingParams)} - {"seed"}
    assert [name for name in [*fields, "sampling_seed"] if f"--{name.replace('_', '-')} " not in text] == []


@pytest.mark.parametrize(
    ("biases", "words"),
    [
        (["15"], "'15': give a token id and what is added to its logit, as in 15=-100"),
        (["a=1"], "'a=1': give a token id"),
        (["15=much"], "'15=much': give a token id"),
        (["15=1", "27=1", "15=2"], "token 15 has two biases"),
        (["15=101"], "logit_bias = 101.0 is not accepted: give a number from -100 to 100"),
        (["-1=1"], "logit_bias = -1 is not accepted"),
    ],
    ids=str,
)
def test_a_bias_that_is_none_is_named(biases: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status: object = main(["generate", "--prompt=x", *(f"--logit-bias={bias}" for bias in biases)])
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2 and words in capsys.readouterr().err


def test_a_bad_list_of_sizes_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--decode-buckets", "a,b"])
    assert "'a,b': give whole numbers separated by commas" in capsys.readouterr().err


def test_a_cache_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["generate", "--prompt", "x", "--compilation-cache-dir", str(tmp_path / "file" / "below")]) == 2
    assert "compilation_cache_dir" in capsys.readouterr().err


@pytest.mark.slow
def test_generate_prints_the_prompt_and_what_follows(
    capsys: pytest.CaptureFixture[str], compilation_cache: str
) -> None:
    options = ["--compilation-cache-dir", compilation_cache, *SMALL, "--max-tokens=8", "--temperature=0"]
    assert main(["generate", "--prompt", "ROMEO:\n", *options]) == 0
    once = capsys.readouterr().out
    assert once.startswith("ROMEO:\n") and len(once) > 10
    assert main(["generate", "--prompt", "ROMEO:\n", *options]) == 0
    assert capsys.readouterr().out == once
    assert main(["generate", "--prompt", "ROMEO:\n", *options, "--n=2", "--logprobs=2", "--ignore-eos"]) == 0
    both = capsys.readouterr().out
    assert both.count(once) == 2 and both.startswith("--- 1 of 2\n")
    assert len(re.findall(r"^ +-?\d+\.\d{3}  '", both, re.MULTILINE)) == 16
    assert main(["generate", "--prompt=x", *options, "--logprobs=0", "--logit-bias=40=100", "--logit-bias=41=99"]) == 0
    named = re.findall(r"^ +-?\d+\.\d{3}  ('.*')$", capsys.readouterr().out, re.MULTILINE)
    assert len(named) == 8 and len(set(named)) == 1, "a bias of 100 leaves one token"
    assert main(["generate", "--prompt=fine", f"--prompt={'x ' * 2000}", *options]) == 2
    printed, error = capsys.readouterr()
    assert printed == "" and "the prompt has" in error, "the first one was printed though the second cannot be"


@pytest.mark.slow
def test_generate_prints_what_the_prompt_is_worth(capsys: pytest.CaptureFixture[str], compilation_cache: str) -> None:
    """What `LLM.score` says, first token included, which has none; the same of one completion and of several."""
    options = ["--compilation-cache-dir", compilation_cache, *SMALL, "--prompt", "ROMEO: O!", "--prompt-logprobs=1"]
    assert main(["generate", *options, "--max-tokens=0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["ROMEO: O!", "--- prompt"]
    (scored,) = LLM(compilation_cache_dir=compilation_cache, progress=False, **FEW_PROGRAMS).score("ROMEO: O!")
    found = [line.split()[0] for line in lines[2:]]
    assert found == ["-", *(f"{entry.logprob:.3f}" for entry in scored if entry)] and len(found) > 2
    texts = [literal_eval(re.findall(r"'.*?'", line)[0]) for line in lines[2:]]
    assert "".join(texts[1:]) == "ROMEO: O!"
    assert main(["generate", *options, "--n=2", "--max-tokens=1"]) == 0
    assert capsys.readouterr().out.splitlines()[: len(lines)] == [*lines[1:], "--- 1 of 2"]


@pytest.mark.slow
def test_serve_from_the_command_line(compilation_cache: str) -> None:
    """A real server on the embedded model: answers, streams, and ends when told to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--port={port}", *SMALL, f"--compilation-cache-dir={compilation_cache}"]
    command = [sys.executable, "-m", "jaxserve", "serve", *options]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert process.poll() is None, "the server ended"
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/ready", timeout=PATIENCE_S).status_code == 200
        return False

    try:
        wait_for(ready, 5 * PATIENCE_S)
        body = {"prompt": "ROMEO:\n", "max_tokens": 12, "temperature": 0}
        whole = httpx.post(f"{url}/generate", json=body, timeout=60).json()
        assert whole["usage"]["completion_tokens"] <= 12 and whole["choices"][0]["text"]
        streamed = httpx.post(f"{url}/generate", json=body | {"stream": True}, timeout=60).text
        pieces = [json.loads(line[6:]) for line in streamed.split("\n\n") if line and "[DONE]" not in line]
        assert "".join(piece["text"] for piece in pieces) == whole["choices"][0]["text"]
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "embedded"
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) in (0, 130, -signal.SIGINT)
