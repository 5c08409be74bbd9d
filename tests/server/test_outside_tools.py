"""Evaluation and load-testing tools as people run them, each where it is on the PATH: the lines of docs/clients.md."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from jaxserve.assembly import EMBEDDED
from tests.server.conftest import Running

ROOT = Path(__file__).parent.parent.parent
TASK = """
task: ends
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{line}}}}"
{rest}
"""
CHOICE = 'doc_to_choice: ["Romeo", "xqzzkp"]\ndoc_to_target: 0\nmetric_list: [{metric: acc}]'
SPEAK = """doc_to_target: "Romeo"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 8}
metric_list: [{metric: exact_match}]"""

pytestmark = pytest.mark.slow


def run(folder: Path, tool: str, *arguments: str) -> str:
    """What it says; skips where it is not installed."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not on the PATH: install it into an environment of its own")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    if tool == "aiperf":
        del environment["HF_HUB_OFFLINE"]  # offline it takes no tokenizer by its path
    done = subprocess.run([tool, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("kind", ["multiple_choice", "generate_until"])
@pytest.mark.parametrize("api", ["local-completions", "local-chat-completions"])
def test_lm_eval(embedded: Running, tmp_path: Path, api: str, kind: str) -> None:
    """With the server's tokenizer (`/tokenizer_info`): log-probabilities of continuations by echo, and generation."""
    if api == "local-chat-completions" and kind == "multiple_choice":
        pytest.skip("lm-eval asks a chat API for generation only")
    (tmp_path / "lines.jsonl").write_text(
        "".join(json.dumps({"line": "ROMEO:\nI am " * n}) + "\n" for n in range(1, 9))
    )
    rest = CHOICE if kind == "multiple_choice" else SPEAK
    (tmp_path / "ends.yaml").write_text(TASK.format(data=tmp_path / "lines.jsonl", kind=kind, rest=rest))
    path = "/v1/completions" if api == "local-completions" else "/v1/chat/completions"
    said = run(
        tmp_path, "lm_eval", "run", "--model", api, "--tasks", "ends", "--include_path", str(tmp_path),
        "--model_args", f"model=embedded,base_url={embedded.url}{path},num_concurrent=4,max_retries=1",
        "--output_path", str(tmp_path / "out"), *(["--apply_chat_template"] if "chat" in api else []),
    )  # fmt: skip
    (found,) = (tmp_path / "out").rglob("results*.json")
    results = json.loads(found.read_text())
    assert results["n-samples"]["ends"]["effective"] == 8, said
    if kind == "multiple_choice":
        assert results["results"]["ends"]["acc,none"] == 1.0, "a name is likelier than noise"


def test_aiperf(embedded: Running, tmp_path: Path) -> None:
    run(
        tmp_path, "aiperf", "profile", "--model", "embedded", "--url", embedded.url, "--endpoint-type", "chat",
        "--streaming", "--tokenizer", str(EMBEDDED), "--use-server-token-count", "--concurrency", "4",
        "--request-count", "16", "--synthetic-input-tokens-mean", "32", "--output-tokens-mean", "16",
        "--extra-inputs", "ignore_eos:true", "--ui", "none", "--artifact-dir", str(tmp_path / "out"),
    )  # fmt: skip
    found = json.loads((tmp_path / "out" / "profile_export_aiperf.json").read_text())
    assert found["completed_request_count"]["avg"] == 16 and found["request_error_rate"]["avg"] == 0
    assert found["total_output_tokens"]["avg"] == 16 * 16 and found["time_to_first_token"]["avg"] > 0


def test_guidellm(embedded: Running, tmp_path: Path) -> None:
    run(
        tmp_path, "guidellm", "run", "--backend", f"kind=openai_http,target={embedded.url},model=embedded",
        "--profile", "kind=concurrent,streams=4", "--constraint", "kind=max_requests,count=16",
        "--tokenizer", f"kind=huggingface_auto,model={EMBEDDED}",
        "--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=16",
    )  # fmt: skip
    (benchmark,) = json.loads((tmp_path / "benchmarks.json").read_text())["benchmarks"]
    assert benchmark["metrics"]["request_totals"]["successful"] == 16
    assert benchmark["metrics"]["output_token_count"]["successful"]["mean"] == 16


def test_locust(embedded: Running, tmp_path: Path) -> None:
    said = run(
        tmp_path, "locust", "-f", str(ROOT / "examples/locust/locustfile.py"), "--host", embedded.url, "--headless",
        "-u", "4", "-r", "4", "-t", "5s", "--json",
    )  # fmt: skip
    rows = {row["name"]: row for row in json.loads(said)}
    assert rows.keys() == {"/v1/completions", "TTFT", "TPOT"}
    assert all(row["num_requests"] > 0 and row["num_failures"] == 0 for row in rows.values())
