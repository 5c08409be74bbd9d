"""docs/serving.md has a table of what a tenant can send and what bounds it: every test that it names is there."""

import ast
import re
from pathlib import Path

from jaxserve.server.schemas.chat import ChatBody
from jaxserve.server.schemas.completions import CompletionsBody
from jaxserve.server.schemas.generate import GenerateBody

ROOT = Path(__file__).parent.parent
TABLE = (
    (ROOT / "docs" / "serving.md")
    .read_text()
    .split("### What a tenant can send, and what bounds it")[1]
    .split("\n## ")[0]
)
ROWS = [line.strip("|").split(" | ") for line in TABLE.splitlines() if line.startswith("| ")][2:]


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_row_names_a_test_and_every_test_exists() -> None:
    assert len(ROWS) > 15
    for row in ROWS:
        assert len(row) == 4, row
        named = re.findall(r"`([\w/.]+)::(\w+)`", row[3])
        assert named, f"no test: {row[0]}"
        for path, function in named:
            assert function in functions(ROOT / path), f"{path}::{function}"


def test_every_field_of_a_body_that_is_not_harmless_has_a_row() -> None:
    """What only says how the answer looks, or which token is likeliest, costs no other tenant anything."""
    harmless = {
        "messages", "prompt", "prompt_token_ids", "model", "temperature", "seed", "metadata", "service_tier",
        "response_format", "tool_choice", "stream_options", "include_stop_str_in_output", "skip_special_tokens",
        "spaces_between_special_tokens", "return_token_ids", "return_tokens_as_token_ids", "add_special_tokens",
        "add_generation_prompt", "continue_final_message", "prompt_cache_key", "safety_identifier",
        "truncate_prompt_tokens", "chat_template_kwargs", "modalities",
    }  # fmt: skip
    synonyms = {
        "max_completion_tokens": "max_tokens", "top_logprobs": "logprobs", "best_of": "n", "stop_token_ids": "stop",
        "min_p": "top_p", "presence_penalty": "penalties", "frequency_penalty": "penalties",
        "repetition_penalty": "penalties",
    }  # fmt: skip
    first = " ".join(row[0] for row in ROWS)
    for body in (GenerateBody, CompletionsBody, ChatBody):
        for field in set(body.model_fields) - harmless:
            assert synonyms.get(field, field) in first, f"{body.__name__}.{field} is not in the table"
