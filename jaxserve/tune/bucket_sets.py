"""Bucket sets by name: "single", "powers4", "powers2", "midpoints", "linear", and "fitted-K" for a workload."""

from itertools import pairwise

from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError
from jaxserve.costs.model import CostModel
from jaxserve.sim.step_sizes import ProgramSeconds
from jaxserve.tune.bucket_search import BucketSet, Steps, best_sets

SMALLEST_PREFILL = 32


def powers(first: int, last: int, factor: int = 2) -> tuple[int, ...]:
    """`first` times the powers of `factor` below `last`, and `last`."""
    sizes = [min(first, last)]
    while sizes[-1] * factor < last:
        sizes.append(sizes[-1] * factor)
    return tuple(sorted({*sizes, last}))


def with_midpoints(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted({*sizes, *((a + b) // 2 for a, b in pairwise(sizes))}))


def linear(last: int, steps: int = 8) -> tuple[int, ...]:
    return tuple(sorted({max(last * i // steps, 1) for i in range(1, steps + 1)}))


def plain_sets(config: EngineConfig) -> dict[str, BucketSet]:
    """Those that no workload is needed for."""
    rows, tokens = config.scheduler.max_num_seqs, config.scheduler.max_num_batched_tokens
    first, mixed = min(SMALLEST_PREFILL, tokens), powers(max(rows // 4, 1), rows, 4)
    return {
        "single": BucketSet((rows,), (tokens,), (rows,)),
        "powers4": BucketSet(powers(1, rows, 4), powers(first, tokens, 4), mixed),
        "powers2": BucketSet(powers(1, rows), powers(first, tokens), mixed),
        "midpoints": BucketSet(with_midpoints(powers(1, rows)), with_midpoints(powers(first, tokens)), mixed),
        "linear": BucketSet(linear(rows), linear(tokens), mixed),
    }


def fitted(config: EngineConfig, steps: Steps, cost: CostModel, programs: int) -> BucketSet:
    """The set of at most so many programs that costs least on these steps."""
    rows, tokens = config.scheduler.max_num_seqs, config.scheduler.max_num_batched_tokens
    seconds = ProgramSeconds(cost, config.buckets.prefill_rows)
    multiple = min(16, tokens)
    found = best_sets(steps, programs, max_decode=rows, max_prefill=tokens, prefill_multiple=multiple, cost=seconds)
    return found[-1]


def fitted_programs(name: str) -> int | None:
    """K of "fitted-K"; None for a plain set; ConfigError for no set at all."""
    if name in ("single", "powers4", "powers2", "midpoints", "linear"):
        return None
    kind, _, number = name.partition("-")
    if kind != "fitted" or not number.isdigit() or int(number) < 3:
        raise ConfigError(
            f"buckets = {name!r}: give single, powers4, powers2, midpoints, linear, or fitted-K with K of at least 3"
        )
    return int(number)
