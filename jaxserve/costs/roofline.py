"""A cost model from a machine's two rates and a model's size, for machines that have not been measured.

    weights   bytes of the weights / bandwidth              a step reads them once ...
    token     2 x parameters in matmuls / matmul rate       ... or is bound by its matmuls (Williams, Waterman,
    pair      4 x layers x heads x head dim / matmul rate   Patterson: "Roofline", 2009)
    context   bytes of K and V of a token / bandwidth       a decode row reads its whole context

Each rate is taken times an efficiency, since no kernel reaches the roof. The model says what it is in its `source`,
which every output shows: a roofline is a guess that is often right within a third, and no measurement.
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from jaxserve.core.errors import ConfigError
from jaxserve.core.files import read_json
from jaxserve.core.settings import require
from jaxserve.costs.model import FormulaCost


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """The numbers of a decoder that its steps' times follow from."""

    parameters: int
    """Numbers that a step reads: those of every matrix."""
    matmul_parameters: int
    """Numbers that every token is multiplied with, those of the output layer included."""
    attention_width: int
    """Values in the queries of one token: layers x heads x head dim."""
    kv_width: int
    """Values in the keys and values of one token: 2 x layers x KV heads x head dim."""

    @classmethod
    def from_file(cls, path: str | Path) -> "ModelSize":
        """The size of a decoder with a gated MLP, from its Hugging Face config.json.

        Raises:
          ConfigError: naming the field that is missing.
        """
        stored = read_json(path, "give a model's config.json")
        found = {name: value for name, value in stored.items() if value is not None}
        heads = found.get("num_attention_heads")
        if isinstance(heads, int) and heads > 0:
            found.setdefault("num_key_value_heads", heads)
            found.setdefault("head_dim", found.get("hidden_size", 0) // heads)
        values: dict[str, int] = {}
        for name in _FIELDS:
            value = found.get(name)
            if type(value) is not int:
                raise ConfigError(f"{path}: {name} = {value!r}: expected a number, as in a model's config.json")
            values[name] = value
        tied = found.get("tie_word_embeddings", False)
        if type(tied) is not bool:
            raise ConfigError(f"{path}: tie_word_embeddings = {tied!r}: expected true or false")
        return _gated_decoder(**values, tied=tied)

    def kv_bytes_per_token(self, bytes_per_value: int) -> int:
        return self.kv_width * bytes_per_value


_FIELDS = (
    "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size",
)  # fmt: skip


def _gated_decoder(
    *,
    num_hidden_layers: int,
    hidden_size: int,
    intermediate_size: int,
    num_attention_heads: int,
    num_key_value_heads: int,
    head_dim: int,
    vocab_size: int,
    tied: bool,
) -> ModelSize:
    queries, keys = num_attention_heads * head_dim, num_key_value_heads * head_dim
    layer = hidden_size * (2 * queries + 2 * keys + 3 * intermediate_size)
    head = hidden_size * vocab_size
    return ModelSize(
        parameters=num_hidden_layers * layer + (1 if tied else 2) * head,
        matmul_parameters=num_hidden_layers * layer + head,
        attention_width=num_hidden_layers * queries,
        kv_width=2 * num_hidden_layers * keys,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Bytes and operations a second. An H200: `Machine(name="H200", bandwidth=4.3e12, matmul=790e12)`."""

    name: str
    bandwidth: float
    matmul: float
    host_bandwidth: float = 50e9
    """Between device and host memory, one way."""
    bandwidth_efficiency: float = 0.8
    matmul_efficiency: float = 0.65
    attention_efficiency: float = 0.4
    """Of the matmul rate, in prefill attention."""
    overhead_s: float = 0.0015
    """A step's, whatever is in it: the host's part and the launches."""
    row_s: float = 1e-5
    bytes_per_value: int = 2
    """Of a weight, and of a number in the KV cache."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in ("overhead_s", "row_s"):
                require(0 <= value < math.inf, f.name, value, "seconds, or 0")
            elif f.name != "name":
                require(0 < value < math.inf, f.name, value, "a positive rate")
            if f.name.endswith("efficiency"):
                require(value <= 1, f.name, value, "a share up to 1")


def parse_roofline(text: str) -> FormulaCost:
    """A cost model from "CONFIG.JSON,bandwidth=4.3e12,matmul=790e12[,name=H200][,overhead_s=0.001] ...".

    Raises:
      ConfigError: naming the part that cannot be read.
    """
    path, *parts = text.split(",")
    known = {f.name: f.type for f in fields(Machine)}
    values: dict[str, Any] = {"name": "a machine"}
    for part in parts:
        name, _, value = part.partition("=")
        try:
            values[name] = value if name == "name" else int(value) if name == "bytes_per_value" else float(value)
        except ValueError:
            name = ""
        if name not in known:
            raise ConfigError(f"roofline: {part!r}: give NAME=NUMBER; names: {', '.join(known)}")
    for name in ("bandwidth", "matmul"):
        require(name in values, "roofline", text, f"{name}=NUMBER too: bytes or operations a second")
    return roofline(ModelSize.from_file(path), Machine(**values), _model_name(Path(path)))


def _model_name(path: Path) -> str:
    """The folder's name where the file has the name that all have."""
    return path.resolve().parent.name if path.name == "config.json" else path.stem


def roofline(size: ModelSize, machine: Machine, model_name: str) -> FormulaCost:
    """What steps cost at best, less the efficiencies."""
    bandwidth = machine.bandwidth * machine.bandwidth_efficiency
    matmul = machine.matmul * machine.matmul_efficiency
    kv_bytes = size.kv_bytes_per_token(machine.bytes_per_value)
    return FormulaCost(
        source=(
            f"roofline, not measured: {model_name} ({size.parameters / 1e9:.2f}B parameters) on {machine.name}, "
            f"{machine.bandwidth / 1e12:g} TB/s x {machine.bandwidth_efficiency:g}, "
            f"{machine.matmul / 1e12:g} TFLOP/s x {machine.matmul_efficiency:g}"
        ),
        overhead_s=machine.overhead_s,
        weights_s=size.parameters * machine.bytes_per_value / bandwidth,
        token_s=2 * size.matmul_parameters / matmul,
        pair_s=4 * size.attention_width / (machine.matmul * machine.attention_efficiency),
        context_s=kv_bytes / bandwidth,
        row_s=machine.row_s,
        padded=True,
        kv_bytes_per_token=kv_bytes,
        move_s_per_token=kv_bytes / machine.host_bandwidth,
    )
