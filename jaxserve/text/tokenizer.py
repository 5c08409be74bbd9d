"""A model's tokenizer and chat template, read from its directory. No Python code from a checkpoint is ever run."""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import tokenizers

from jaxserve.core.errors import CheckpointError, InvalidRequest
from jaxserve.text.token_bytes import TokenBytes
from jaxserve.text.tokenizer_files import end_ids, special_tokens, template_source, warn_of_idle_flags

Message = dict[str, Any]

_NOT_GIVEN = {"tools": None, "documents": None}
"""What Hugging Face gives templates that nobody gave these: they ask `tools is not none`."""
_HERE = "CONTINUE_FINAL_MESSAGE_TAG "
"""Behind the message that is to be continued while it is rendered; as Hugging Face does it, with the same mark."""
_OWN = frozenset({"self", "messages", "add_generation_prompt", "continue_final_message"})
"""What `chat_template_kwargs` may not name."""


class Tokenizer:
    """Text to token ids and back.

    Args:
      backend: a fast tokenizer of the `tokenizers` library.
      eos_token_ids: tokens that end a generation.
      chat_template: Jinja source, as Hugging Face keeps it.
      special: what a template may name: bos_token, eos_token, ...
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        eos_token_ids: tuple[int, ...] = (),
        chat_template: str | None = None,
        special: dict[str, str] | None = None,
    ) -> None:
        self._backend = backend
        self.eos_token_ids = eos_token_ids
        self._special = special or {}
        self._source = chat_template
        self.token_bytes = TokenBytes(backend)
        self._template = None if chat_template is None else _compiled(chat_template)

    @classmethod
    def from_directory(cls, path: str | Path) -> "Tokenizer":
        """Reads `tokenizer.json` and, where they exist, the Hugging Face files beside it.

        Raises:
          CheckpointError: names the file and what is supported.
        """
        folder = Path(path)
        file = folder / "tokenizer.json"
        if not file.is_file():
            found = "only tokenizer.model" if (folder / "tokenizer.model").exists() else "no tokenizer.json"
            raise CheckpointError(
                folder,
                found,
                "a fast tokenizer is needed: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) makes one; or set "
                "tokenizer, to a folder or hub id that has one, or skip_tokenizer_init, for token ids alone",
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(
                file, f"not a tokenizer ({error})", "supported: the tokenizers library's JSON"
            ) from error
        special = special_tokens(folder)
        token_id = backend.token_to_id(special["eos_token"]) if "eos_token" in special else None
        ends = dict.fromkeys(end_ids(folder) + (() if token_id is None else (token_id,)))
        warn_of_idle_flags(folder, backend, special)
        return cls(backend, tuple(ends), template_source(folder), special)

    @property
    def backend(self) -> tokenizers.Tokenizer:
        return self._backend

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def info(self) -> dict[str, Any]:
        """What a client needs to tokenize as it is done here: the special tokens by name, and the template's source."""
        return self._special | {"chat_template": self._source}

    @functools.cached_property
    def max_token_chars(self) -> int:
        """Characters of the longest token: a text of more than n times as many has more than n tokens."""
        return max(len(piece) for piece in self._backend.get_vocab(with_added_tokens=True))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids. InvalidRequest: the text has half a surrogate pair, as JSON can write one."""
        try:  # `encode` of one text would hold the interpreter's lock: for seconds, if the text is long
            return self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        except TypeError as error:
            at = next((i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"), None)
            if at is None:
                raise
            raise InvalidRequest(
                f"the text has {text[at]!r} at {at}, half of a surrogate pair, which no tokenizer reads: leave it out",
                "prompt",
            ) from error

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self._backend.decode(list(tokens), skip_special_tokens=skip_special_tokens)

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that `decode` leaves out with `skip_special_tokens`."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(token for token, entry in added.items() if entry.special)

    def token_text(self, token: int) -> str:
        """One token's own text; what is no whole character shows as U+FFFD."""
        return self._backend.decode([token], skip_special_tokens=False)

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **extra: Any,
    ) -> str:
        """The conversation as the model was trained to see it.

        Raises:
          InvalidRequest: no template, or the template refuses the messages.
        """
        if self._template is None:
            raise InvalidRequest("this model has no chat template: send a prompt instead", "messages")
        conversation = [_plain(message, i) for i, message in enumerate(messages)]
        if not conversation:
            raise InvalidRequest("messages is empty: give at least one", "messages")
        if continue_final_message and add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message and add_generation_prompt exclude each other: set one to false",
                "continue_final_message",
            )
        if continue_final_message:
            conversation[-1] = conversation[-1] | {"content": (conversation[-1].get("content") or "") + _HERE}
        names: dict[str, Any] = {"messages": conversation, "add_generation_prompt": add_generation_prompt}
        try:
            text = self._template.render(**(_NOT_GIVEN | self._special | extra | names))
        except Exception as error:  # a template is a program: it fails in any way that Python knows
            raise InvalidRequest(f"the chat template refuses these messages: {error}", "messages") from error
        return _until_here(text) if continue_final_message else text

    def encode_chat(self, messages: Sequence[Message], **options: Any) -> list[int]:
        """`render_chat`, encoded; the template writes the special tokens itself."""
        return self.encode(self.render_chat(messages, **options), add_special_tokens=False)


def template_options(more: Mapping[str, Any] | None, opens: bool | None, continues: bool | None) -> dict[str, Any]:
    """What `render_chat` is given of `chat_template_kwargs`, `add_generation_prompt` and `continue_final_message`: the
    assistant's turn is opened unless its last message is continued. InvalidRequest: the first names one of the others.
    """
    more = dict(more or {})
    for name in _OWN & more.keys():
        raise InvalidRequest(
            f"chat_template_kwargs: {name} has a place of its own, or none: take it out", "chat_template_kwargs"
        )
    opened = opens if opens is not None else not continues
    return more | {"add_generation_prompt": opened, "continue_final_message": bool(continues)}


def _plain(message: Message, index: int) -> Message:
    """A message as templates know them: its content one text, whatever parts it came in."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidRequest(f"messages[{index}] must be an object with a role", "messages")
    content = message.get("content")
    if not isinstance(content, list):
        return message
    texts: list[str] = []
    for part in cast(list[Any], content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise InvalidRequest(f"messages[{index}]: only parts of type text are supported", "messages")
        texts.append(part["text"])
    return message | {"content": "\n".join(texts)}


def _until_here(text: str) -> str:
    """A conversation up to the mark; spaces before it are the message's own, unless the template trims it."""
    place = text.rfind(_HERE.strip())
    if place < 0:
        raise InvalidRequest("the chat template leaves the last message out: it cannot continue", "messages")
    kept = text.startswith(_HERE, place)
    return text[:place] if kept else text[:place].rstrip()


def _compiled(template: str) -> Any:
    import jinja2

    try:
        return _environment().from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise CheckpointError("chat template", f"line {error.lineno}: {error.message}", "expected Jinja") from error


def _environment() -> Any:
    """As Hugging Face renders templates: trimmed blocks, loop controls, `generation`, and three functions."""
    import jinja2.ext  # here, so that who has no chat template needs no jinja2
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks, for training, what the model says: its inside is rendered as it stands."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment
