"""What a decoder model is: its sizes and the few switches by which Llama's cousins differ.

What another architecture needs besides is a frozen dataclass of its own file, in `ModelConfig.extra`.

A `ModelConfig` is hashable, so it can be a static argument of a compiled program. It comes from a Hugging Face
`config.json` (`checkpoints.config_from_hf`), or is written by hand where the weights are given as a pytree.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

from jaxserve.core.errors import ConfigError

RopeKind = Literal["default", "linear", "llama3", "yarn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding: how fast each pair of head dimensions turns with the position.

    `factor` stretches the context by that much (linear, llama3, yarn); `original_max_position_embeddings` is the
    length the model was trained on before the stretch, in tokens.
    """

    kind: RopeKind = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A pre-norm decoder with rotary positions, grouped-query attention and a gated MLP.

    `architecture` is the Hugging Face class name (`LlamaForCausalLM`). `sliding_window` has one entry a layer: how many
    tokens a token sees, itself included, or None for all; left empty it means None everywhere. `rms_norm_eps` is the
    epsilon of whatever norm the architecture has. `extra` holds the values that only this architecture has: an instance
    of a frozen dataclass that its file declares. ConfigError if the sizes do not fit together.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope: RopeConfig = RopeConfig()
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    sliding_window: tuple[int | None, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    extra: Hashable = None

    def __post_init__(self) -> None:
        sizes = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
        )
        for name in (*sizes, "max_position_embeddings", "rms_norm_eps"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} = {getattr(self, name)!r} cannot work: give a positive number")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads = {self.num_heads} is not a multiple of num_kv_heads = {self.num_kv_heads}: "
                "each key-value head serves the same number of query heads"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim = {self.head_dim} is odd: rotary positions turn pairs of dimensions")
        windows = self.sliding_window or (None,) * self.num_layers
        if len(windows) != self.num_layers or any(w is not None and w < 1 for w in windows):
            raise ConfigError(
                f"sliding_window = {windows!r} cannot work: give one entry for each of the {self.num_layers} layers, "
                "None or a positive number of tokens"
            )
        object.__setattr__(self, "sliding_window", tuple(windows))
        try:
            hash(self.extra)
        except TypeError as error:
            raise ConfigError(f"extra = {self.extra!r} cannot be hashed: give a frozen dataclass") from error

    @property
    def group_size(self) -> int:
        """Query heads that share one key-value head (G)."""
        return self.num_heads // self.num_kv_heads

    @property
    def context_length(self) -> int:
        """Longest sequence the model is made for, in tokens, rotary scaling included."""
        rope = self.rope
        if rope.kind == "linear":
            return int(self.max_position_embeddings * rope.factor)
        if rope.kind == "yarn" and rope.original_max_position_embeddings is not None:
            return max(self.max_position_embeddings, int(rope.original_max_position_embeddings * rope.factor))
        return self.max_position_embeddings
