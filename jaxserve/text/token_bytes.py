"""The bytes behind a token: what log-probability formats report where a token is no whole character.

Two families of vocabularies cover the field. Byte-level ones (GPT-2's) write every byte as one printable character;
byte-fallback ones (SentencePiece's) write a space as U+2581 and a lone byte as <0xE6>.
"""

import functools
import json
import re

import tokenizers

_LONE_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes:
    """Token id -> bytes, for one tokenizer."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._byte_level = '"ByteLevel"' in json.dumps(json.loads(backend.to_str()).get("decoder"))
        self._added = {token: added.content for token, added in backend.get_added_tokens_decoder().items()}

    def __call__(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        piece = self._backend.id_to_token(token)
        if piece is None:  # the model's vocabulary may be padded beyond the tokenizer's
            return b""
        if self._byte_level:
            table = _byte_of_character()
            return b"".join(table.get(c) or c.encode() for c in piece)
        if lone := _LONE_BYTE.fullmatch(piece):
            return bytes([int(lone[1], 16)])
        return piece.replace("\u2581", " ").encode()


@functools.cache
def _byte_of_character() -> dict[str, bytes]:
    """GPT-2's table: printable Latin-1 stands for itself, the other bytes for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): bytes([byte]) for byte in printable}
    return table | {chr(0x100 + i): bytes([byte]) for i, byte in enumerate(others)}
