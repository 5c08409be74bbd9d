"""How long a step takes: one model for admission, the adaptive policy, the victims' prices, the simulator, the tuner.

    features = StepFeatures.of(plan)        what of a plan costs time
    seconds  = model.seconds(features)      `FormulaCost`: written down; `FittedCost`: learnt from recorded steps

`costs.file` keeps a model in a JSON file, together with where it comes from.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Protocol

from jaxserve.core.plan import Bucket, Row, StepPlan


class StepFeatures(NamedTuple):
    """What of a step costs time. `c`: tokens of a row's context before the step, `p`: tokens of its chunk."""

    prefill_tokens: int
    """Sum of p."""
    prefill_pairs: float
    """Sum of p (c + p / 2): query-key pairs of the chunks."""
    prefill_rows: int
    decode_rows: int
    decode_context: int
    """Sum of c over the decode rows."""
    bucket: Bucket
    decode_longest: int = 0
    """The largest c of a decode row: a program that takes its rows in blocks goes on for the longest of a block."""
    prefill_longest: int = 0
    """The largest c + p of a chunk."""

    @property
    def rows(self) -> int:
        return self.prefill_rows + self.decode_rows

    @property
    def tokens(self) -> int:
        return self.prefill_tokens + self.decode_rows

    @classmethod
    def of(cls, plan: StepPlan) -> "StepFeatures":
        return cls.of_rows(plan.decodes, plan.prefills, plan.bucket)

    @classmethod
    def of_rows(cls, decodes: Sequence[Row], prefills: Sequence[Row], bucket: Bucket) -> "StepFeatures":
        """Of some of a step's rows, in the bucket of the whole step."""
        tokens, pairs, longest = 0, 0.0, 0
        for row in prefills:
            tokens += row.length
            pairs += row.length * (row.start + 0.5 * row.length)
            longest = max(longest, row.start + row.length)
        contexts = [row.start for row in decodes]
        return cls(tokens, pairs, len(prefills), len(decodes), sum(contexts), bucket, max(contexts, default=0), longest)

    @classmethod
    def of_chunk(cls, start: int, tokens: int, bucket: Bucket) -> "StepFeatures":
        """Of a step that holds `tokens` tokens of one prompt, after `start` others."""
        return cls(tokens, tokens * (start + 0.5 * tokens), 1, 0, 0, bucket, prefill_longest=start + tokens)


class CostModel(Protocol):
    @property
    def source(self) -> str:
        """Where the figures come from: shown beside every prediction."""
        ...

    def seconds(self, features: StepFeatures) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FormulaCost:
    """A step's time written down, for machines one does not own:

        overhead + max(weights, token x tokens) + pair x prefill pairs + context x decode context + row x rows

    `padded`: tokens are the bucket's, not the plan's.
    """

    source: str
    overhead_s: float
    weights_s: float
    """Reading the weights once: the floor of the matmuls."""
    token_s: float
    pair_s: float
    context_s: float
    row_s: float
    padded: bool = False
    kv_bytes_per_token: int = 0
    move_s_per_token: float = 0.0
    """K/V of one token between device and host memory, one way."""
    disk_s_per_token: float = 0.0
    """The same between host memory and the disk."""

    def seconds(self, features: StepFeatures) -> float:
        tokens = features.bucket.tokens if self.padded else features.tokens
        return (
            self.overhead_s
            + max(self.weights_s, self.token_s * tokens)
            + self.pair_s * features.prefill_pairs
            + self.context_s * features.decode_context
            + self.row_s * features.rows
        )

    def to_json(self) -> dict[str, Any]:
        return {"kind": "formula"} | asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "FormulaCost":
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in stored.items() if name in known})
