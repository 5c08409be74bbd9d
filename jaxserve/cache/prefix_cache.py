"""Which block holds which tokens: a chain of hashes, one a full block.

A block's hash covers its tokens and the hash before it, so that equal hashes mean equal prefixes from the first token
on. The first link is seeded with the sequence's scope (its tenant, unless that shares prefixes) and the request's salt:
sequences with different seeds never share a block. Hashes are 128-bit BLAKE2, computed once a sequence, as its blocks
fill.
"""

import hashlib
from array import array

from jaxserve.core.sequence import Sequence

_NO_SCOPE = bytes(16)


class PrefixCache:
    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._block_of)

    def knows(self, block: int) -> bool:
        return block in self._hash_of

    def hash_blocks(self, sequence: Sequence, count: int) -> list[bytes]:
        """The hashes of the sequence's first `count` blocks; its known tokens must fill them."""
        hashes, size = sequence.hashes, self._block_size
        while len(hashes) < count:
            begin = len(hashes) * size
            link = hashes[-1] if hashes else _seed(sequence.prefix_scope, sequence.request.cache_salt)
            tokens = array("q", sequence.tokens[begin : begin + size])
            assert len(tokens) == size, "only full blocks have a hash"
            hashes.append(_digest(link + tokens.tobytes()))
        return hashes[:count]

    def links(self, sequence: Sequence) -> list[bytes]:
        """The hashes of all blocks that may be shared: they end at least one token short of the whole sequence.

        One token is always left to compute: its logits are what the next token is sampled from.
        """
        return self.hash_blocks(sequence, (len(sequence.tokens) - 1) // self._block_size)

    def match(self, links: list[bytes]) -> list[int]:
        """Blocks that hold the longest known prefix."""
        blocks: list[int] = []
        for link in links:
            block = self._block_of.get(link)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def register(self, block: int, link: bytes) -> None:
        """`block` now holds the content named by `link`. The first block to hold it is the one that is found."""
        if link not in self._block_of:
            self._block_of[link] = block
            self._hash_of[block] = link

    def forget(self, block: int) -> bytes:
        """The block's content is about to be overwritten. Returns its link."""
        link = self._hash_of.pop(block)
        del self._block_of[link]
        return link

    def forget_link(self, link: bytes) -> int | None:
        """The content named by `link` is not to be found any more. Returns the block that holds it."""
        block = self._block_of.pop(link, None)
        if block is not None:
            del self._hash_of[block]
        return block

    def clear(self) -> None:
        self._block_of.clear()
        self._hash_of.clear()


def _seed(scope: str | None, salt: str) -> bytes:
    """Both parts have a fixed length, so that no salt can stand for another scope."""
    return _digest((_NO_SCOPE if scope is None else _digest(scope.encode())) + _digest(salt.encode()))


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
