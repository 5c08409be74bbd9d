"""Directories, templates, and what is wrong with them."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import tokenizers
from tokenizers import processors

from jaxserve.core.errors import CheckpointError, InvalidRequest
from jaxserve.text.tokenizer import Tokenizer


def test_round_trip(tokenizer: Tokenizer) -> None:
    text = "the queen, 日本 🙂"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_token_ids == (0,) and tokenizer.token_text(0) == "<|end|>"


def test_chat(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "to be?"}]
    assert tokenizer.render_chat(messages) == "<|user|>to be?<|end|><|assistant|>"
    assert tokenizer.render_chat(messages, add_generation_prompt=False) == "<|user|>to be?<|end|>"
    begun = [*messages, {"role": "assistant", "content": "or not"}]
    text = tokenizer.render_chat(begun, add_generation_prompt=False, continue_final_message=True)
    assert text == "<|user|>to be?<|end|><|assistant|>or not"
    assert tokenizer.encode_chat(messages)[-3:] == tokenizer.encode("<|end|><|assistant|>")[-3:]


@pytest.mark.parametrize("messages", [[], [{"content": "x"}], ["hello"]])
def test_bad_messages(tokenizer: Tokenizer, messages: list) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tokenizer.render_chat(messages)
    assert caught.value.param == "messages"


def with_template(directory: Path, tmp_path: Path, template: str | None) -> Tokenizer:
    folder = tmp_path / "t"
    shutil.copytree(directory, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.from_directory(folder)


def test_no_template(directory: Path, tmp_path: Path) -> None:
    tokenizer = with_template(directory, tmp_path, None)
    with pytest.raises(InvalidRequest, match="no chat template"):
        tokenizer.render_chat([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('roles must alternate') }}", "{{ messages.__class__.__mro__[1].__subclasses__() }}"],
)
def test_a_template_that_refuses_or_escapes(directory: Path, tmp_path: Path, template: str) -> None:
    tokenizer = with_template(directory, tmp_path, template)
    with pytest.raises(InvalidRequest, match="refuses"):
        tokenizer.render_chat([{"role": "user", "content": "x"}])


BEGUN = [{"role": "user", "content": " to be? "}, {"role": "assistant", "content": "or not "}]
PLAIN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
TRIMMED = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>{% endfor %}"
MARKED = """\
{% for m in messages %}
    {%- if m.role == "assistant" %}
        {%- generation %}{{ m.content }}<|end|>{% endgeneration %}

    {%- else %}
{{ m.content }}
    {% endif %}
{% endfor %}"""


@pytest.mark.parametrize(
    ("template", "continues", "expected"),
    [
        (PLAIN, True, "<|user|> to be? <|end|><|assistant|>or not "),
        (TRIMMED, True, "<|user|>to be?<|end|><|assistant|>or not"),
        (MARKED, False, " to be? \nor not <|end|>"),
        ("{% if tools is not none %}tools{% endif %}{{ documents is none }}", False, "True"),
        ("{{ messages[0] | tojson }}", False, '{"role": "user", "content": " to be? "}'),
    ],
)
def test_as_hugging_face_renders_it(
    directory: Path, tmp_path: Path, template: str, continues: bool, expected: str
) -> None:
    """What `apply_chat_template` of transformers 5 makes of the same."""
    tokenizer = with_template(directory, tmp_path, template)
    text = tokenizer.render_chat(BEGUN, add_generation_prompt=False, continue_final_message=continues)
    assert text == expected


def test_a_message_that_the_template_drops_cannot_be_continued(directory: Path, tmp_path: Path) -> None:
    tokenizer = with_template(directory, tmp_path, "{{ messages[0].content }}")
    with pytest.raises(InvalidRequest, match="leaves the last message out"):
        tokenizer.render_chat(BEGUN, add_generation_prompt=False, continue_final_message=True)


def test_several_ends(directory: Path, tmp_path: Path) -> None:
    folder = tmp_path / "t"
    shutil.copytree(directory, folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 5]}')
    assert Tokenizer.from_directory(folder).eos_token_ids == (3, 5, 0)


def test_the_tokenizers_own_end_counts_too(directory: Path, tmp_path: Path) -> None:
    """As in vLLM: a chat model is often told its end by the tokenizer alone, and config.json is the base model's."""
    folder = Path(shutil.copytree(directory, tmp_path / "t"))
    (folder / "config.json").write_text('{"eos_token_id": 2}')
    assert Tokenizer.from_directory(folder).eos_token_ids == (2, 0)


def test_special_tokens_of_the_older_file(directory: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(directory, tmp_path / "t"))
    (folder / "special_tokens_map.json").write_text('{"bos_token": {"content": "<|end|>"}, "eos_token": "<other>"}')
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ eos_token }}")
    tokenizer = Tokenizer.from_directory(folder)
    assert tokenizer.render_chat([{"role": "user", "content": "x"}]) == "<|end|><|end|>"


@pytest.mark.parametrize(
    ("post", "flags", "warned"),
    [
        (None, {}, None),
        (None, {"add_bos_token": False, "add_eos_token": False}, None),
        (None, {"add_bos_token": True}, r"add_bos_token = true has no effect: tokenizer.json does not add <\|bos\|> "),
        ("ByteLevel", {"add_bos_token": True, "add_eos_token": False}, "add_bos_token = true has no effect"),
        ("ByteLevel", {"add_eos_token": True}, r"add_eos_token = true .* does not add <\|end\|> "),
        ("Template", {}, None),
        ("Template", {"add_bos_token": True}, None),
        ("Template", {"add_bos_token": False}, r"add_bos_token = false has no effect: tokenizer.json adds <\|bos\|> "),
    ],
)
def test_tokenizer_json_decides_what_begins_a_prompt(
    directory: Path, tmp_path: Path, post: str | None, flags: dict[str, bool], warned: str | None
) -> None:
    """As transformers 5.24.0 has it for LlamaTokenizerFast, Qwen2Tokenizer and PreTrainedTokenizerFast alike."""
    folder = Path(shutil.copytree(directory, tmp_path / "t"))
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens(["<|bos|>"])
    bos = backend.token_to_id("<|bos|>")
    if post == "ByteLevel":
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
    if post == "Template":
        backend.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", bos)]
        )
    backend.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|bos|>", "eos_token": "<|end|>", "tokenizer_class": "LlamaTokenizerFast"} | flags
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with nullcontext() if warned is None else pytest.warns(UserWarning, match=warned):
        tokenizer = Tokenizer.from_directory(folder)
    ids = tokenizer.encode("the king")
    assert (ids[0] == bos) == (post == "Template") and ids[-1] != 0
    assert ids[post == "Template" :] == tokenizer.encode("the king", add_special_tokens=False)


def test_half_a_surrogate_pair_is_no_text(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match=r"'\\ud83d' at 2, half of a surrogate pair") as caught:
        tokenizer.encode("to\ud83d")
    assert caught.value.param == "prompt"


def test_missing_and_corrupt_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(CheckpointError, match="save_pretrained"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a tokenizer"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", "[]"),
        ("generation_config.json", "[]"),
        ("generation_config.json", '{"eos_token_id": "x"}'),
        ("config.json", '{"eos_token_id": [1, null]}'),
        ("chat_template.jinja", "{% if %}"),
        ("tokenizer_config.json", '{"chat_template": {"default": "x"}}'),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default", "template": 5}]}'),
        ("tokenizer_config.json", '{"eos_token": 5}'),
        ("special_tokens_map.json", '{"bos_token": {"id": 5}}'),
        ("chat_template.jinja", b"caf\xe9"),
    ],
)
def test_files_that_hold_something_else(directory: Path, tmp_path: Path, name: str, content: str | bytes) -> None:
    copy = Path(shutil.copytree(directory, tmp_path / "copy"))
    (copy / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match="expected"):
        Tokenizer.from_directory(copy)
