"""What Hugging Face keeps of a tokenizer beside `tokenizer.json`: chat template, special tokens, ends, flags."""

import json
import warnings
from pathlib import Path
from typing import Any, cast

import tokenizers

from jaxserve.core.errors import CheckpointError


def template_source(folder: Path) -> str | None:
    """The chat template, Jinja, where there is one."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return _read(file)
    template = _json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if not isinstance(template, str | None):
        expected = "expected Jinja, or a list of templates by name"
        raise CheckpointError(folder / "tokenizer_config.json", f"chat_template is {template!r}", expected)
    return template


def special_tokens(folder: Path) -> dict[str, str]:
    """By name; older tokenizers have them in a file of their own, over which the newer file goes."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in _json(folder / name).items():
            if not key.endswith("_token") or not value or isinstance(value, bool):  # add_bos_token and its like
                continue
            content = value.get("content") if isinstance(value, dict) else value
            if not isinstance(content, str):
                raise CheckpointError(folder / name, f"{key} is {value!r}", "expected a token's text")
            found[key] = content
    return found


def end_ids(folder: Path) -> tuple[int, ...]:
    """Tokens that end a generation, by the model's own files."""
    for name in ("generation_config.json", "config.json"):
        found = _json(folder / name).get("eos_token_id")
        if found is not None:
            ids = cast(list[Any], found if isinstance(found, list) else [found])
            if not all(type(token) is int for token in ids):
                expected = "expected a token id or a list of them"
                raise CheckpointError(folder / name, f"eos_token_id is {found!r}", expected)
            return tuple(ids)
    return ()


def warn_of_idle_flags(folder: Path, backend: tokenizers.Tokenizer, special: dict[str, str]) -> None:
    """A warning where `add_bos_token` or `add_eos_token` asks for other than what `tokenizer.json` does with a prompt.

    `tokenizer.json` decides, as in transformers 5, whose `PreTrainedTokenizerBase._from_pretrained` drops both flags
    beside that file; the Llama tokenizers of transformers 4 went by the flags.
    """
    file = folder / "tokenizer_config.json"
    config, ids = _json(file), backend.encode("a").ids
    for end, found in (("bos", ids[:1]), ("eos", ids[-1:])):
        flag, text = f"add_{end}_token", special.get(f"{end}_token", "")
        wanted, does = config.get(flag), found == [backend.token_to_id(text)]
        if isinstance(wanted, bool) and wanted != does:
            given = "adds" if does else "does not add"
            warnings.warn(
                f"{file}: {flag} = {str(wanted).lower()} has no effect: tokenizer.json {given} {text or 'one'} itself, "
                f"and decides. To change it: AutoTokenizer.from_pretrained(DIR, {flag}={wanted}).save_pretrained(DIR)",
                stacklevel=2,
            )


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except ValueError as error:
        raise CheckpointError(path, f"not UTF-8 ({error})", "expected text; repair the file or leave it out") from error


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        held = json.loads(_read(path))
    except ValueError as error:
        raise CheckpointError(path, f"not JSON ({error})", "repair the file or leave it out") from error
    if not isinstance(held, dict):
        raise CheckpointError(path, f"holds a {type(held).__name__}", "expected a JSON object")
    return cast(dict[str, Any], held)
