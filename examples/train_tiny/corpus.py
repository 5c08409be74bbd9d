"""From the text of the plays to a tokenizer and to rows of tokens.

The text is a list of speeches, each a name, a colon and some lines, with an empty line between two of them. It does
not mark its scenes, so a new scene is taken to begin where nobody who just spoke is among the next to speak. Two kinds
of document are cut from it:

    a scene    <|startoftext|>ROMEO:\\nIs the day so young?\\n\\nBENVOLIO:\\nBut new struck nine.<|endoftext|>
    a chat     <|startoftext|><|system|>You are BENVOLIO, and you speak with ROMEO.<|end|>
               <|user|>Is the day so young?<|end|><|assistant|>But new struck nine.<|end|><|endoftext|>

A chat is a stretch in which two people speak in turn, written the way the chat template writes it (on one line). A
training row starts at a random place, so that every speech is seen at many positions and in many contexts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS, SYSTEM, USER, ASSISTANT, END = SPECIAL_TOKENS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
CAST_WINDOW = 3  # speeches looked at on either side of a possible scene change


@dataclass(frozen=True)
class Speech:
    """One person's lines. `str()` gives them back as the text has them."""

    name: str
    lines: str

    def __str__(self) -> str:
        return f"{self.name}:\n{self.lines}"


Scene = list[Speech]


def read_scenes(path: Path) -> list[Scene]:
    """Reads the text and cuts it into scenes, in the text's order."""
    speeches: list[Speech] = []
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        name, colon, lines = block.strip().partition(":\n")
        if colon and lines:
            speeches.append(Speech(name, lines))
    names = [speech.name for speech in speeches]
    scenes: list[Scene] = []
    for i, speech in enumerate(speeches):
        cast_before, cast_after = names[max(0, i - CAST_WINDOW) : i], names[i : i + CAST_WINDOW]
        if set(cast_before).isdisjoint(cast_after):
            scenes.append([])
        scenes[-1].append(speech)
    return scenes


def scene_text(scene: Scene) -> str:
    return "\n\n".join(str(speech) for speech in scene)


def split_scenes(scenes: list[Scene]) -> tuple[list[Scene], list[Scene], list[Scene]]:
    """Splits into training (the first 90% of the text), validation (the next 5%) and test (the last 5%)."""
    ends = np.cumsum([len(scene_text(scene)) for scene in scenes])
    first, second = np.searchsorted(ends, [0.90 * ends[-1], 0.95 * ends[-1]])
    return scenes[:first], scenes[first:second], scenes[second:]


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Learns a byte-level BPE: it can write any text, and its first ids are the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


class Corpus:
    """Scenes as token ids, ready to be cut into rows."""

    def __init__(self, scenes: list[Scene], tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.num_bytes = sum(len(scene_text(scene).encode()) for scene in scenes)
        self.bos = tokenizer.token_to_id(BOS)
        tokens: list[int] = []
        speech_starts: list[int] = []
        for scene in scenes:
            for i, speech in enumerate(scene):
                speech_starts.append(len(tokens))
                tokens += self._encode(f"{speech}\n\n" if i + 1 < len(scene) else f"{speech}{EOS}{BOS}")
        self.tokens = np.asarray(tokens, np.int32)  # every scene, one after the other; the first has no BOS
        self.speech_starts = np.asarray(speech_starts)
        self.chats = [np.asarray(self._encode(text), np.int32) for scene in scenes for text in _chats(scene)]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def scene_row(self, rng: np.random.Generator, length: int) -> np.ndarray:
        """`length` tokens from a random speech on; every fourth row begins in the middle of one."""
        starts = self.speech_starts[self.speech_starts <= len(self.tokens) - length]
        start = rng.choice(starts) if rng.random() < 0.75 else rng.integers(len(self.tokens) - length)
        return np.concatenate([[self.bos], self.tokens[start : start + length - 1]])

    def chat_row(self, rng: np.random.Generator, length: int) -> np.ndarray:
        """`length` tokens of random chats, the last one cut off."""
        row = np.empty(0, np.int32)
        while len(row) < length:
            row = np.concatenate([row, self.chats[rng.integers(len(self.chats))]])
        return row[:length]

    def batch(self, rng: np.random.Generator, rows: int, length: int, chat_share: float) -> np.ndarray:
        """Random rows for one training step, int32 [rows, length]."""
        makers = [self.chat_row if rng.random() < chat_share else self.scene_row for _ in range(rows)]
        return np.stack([make(rng, length) for make in makers]).astype(np.int32)

    def heldout_rows(self, length: int) -> np.ndarray:
        """Every token once as a target, int32 [rows, length]: each row is BOS and the next length - 1 tokens.

        The last row is filled up with -1, which the loss leaves out.
        """
        width = length - 1
        padded = np.full(-(-len(self.tokens) // width) * width, -1, np.int32)
        padded[: len(self.tokens)] = self.tokens
        rows = padded.reshape(-1, width)
        return np.concatenate([np.full((len(rows), 1), self.bos, np.int32), rows], axis=1)


def _chats(scene: Scene) -> Iterator[str]:
    """Every stretch in which two people alternate, from each of its speeches on, with and without a system turn."""
    for i, opening in enumerate(scene[:-1]):
        user, assistant = opening.name, scene[i + 1].name
        if user == assistant:
            continue
        turns: list[str] = []
        for j, speech in enumerate(scene[i:]):
            if speech.name != (user, assistant)[j % 2]:
                break
            turns.append(f"{(USER, ASSISTANT)[j % 2]}{speech.lines}{END}")
        dialogue = "".join(turns) + EOS
        yield f"{BOS}{dialogue}"
        yield f"{BOS}{SYSTEM}You are {assistant}, and you speak with {user}.{END}{dialogue}"
