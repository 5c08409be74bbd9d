"""What a kernel is built for: the shape of the problem, and what modifies the scores."""

from dataclasses import dataclass

FLOATS = ("bfloat16", "float16", "float32")
QUANTISED = ("float8_e4m3fn", "int8")


@dataclass(frozen=True, slots=True)
class Options:
    """What modifies the scores, the same for every backend; and where the kernel runs."""

    scale: float
    sliding_window: int | None = None
    """A query at position p sees positions above p - window."""
    soft_cap: float | None = None
    """Scores become cap * tanh(score / cap)."""
    interpret: bool = False
    """Run the kernel in Pallas' interpreter on the CPU: for tests. The reference has nothing to interpret."""


@dataclass(frozen=True, slots=True)
class Problem:
    """The sizes and types that decide which kernel runs, or that none can."""

    head_dim: int
    group: int
    """Query heads of one KV head."""
    page_size: int
    dtype: str
    """Of the queries and the output: one of FLOATS."""
    kv_dtype: str
    """Of the pages: the queries' own, or one of QUANTISED, with a scale for each page and head."""

    @property
    def quantised(self) -> bool:
        return self.kv_dtype in QUANTISED
