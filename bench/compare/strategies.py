"""Scheduling strategies compared on any workload: from static batches to adaptive chunks.

python -m bench.strategies --slo "ttft<1,tpot<0.1"
python -m bench.strategies --simulate --trace azure_2023_conv.jsonl --requests 3000 --own-times --slo "ttft<1,tpot<0.03"

static4       batches of 4 that start when full and end together
dynamic8      batches of up to 8 that start after 50 ms at most
continuous8   a slot is free at every step, 8 of them; whole prompts
continuous    the same with all slots
chunked       prompts in chunks beside the decodes, first come, first served
shortest      the same, shortest remaining prompt first, with ageing
slack         the same, least time to its objective first (needs --slo ttft<..)
adaptive      the largest step that keeps the objective for TPOT (--slo tpot<..); shortest prompt first
admission     the same, and requests whose first token would come too late are refused
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.compare.command import Comparison
from bench.compare.stage import Stage, Variant
from bench.shared.flags import words
from bench.shared.results_file import origin
from jaxserve.commands.plots import plot
from jaxserve.core.errors import ConfigError
from jaxserve.metrics.slo import Slo
from jaxserve.sim.arrivals import Arrival
from jaxserve.tune.bucket_sets import powers

COLUMNS = (
    ("strategy", "name"), ("tokens/s at once", "saturated_tokens_per_s"), ("tokens/s", "tokens_per_s"),
    ("goodput %", "goodput"), ("refused", "refused"), ("TTFT p50 ms", "ttft_p50_s"), ("TTFT p99 ms", "ttft_p99_s"),
    ("short p99 ms", "ttft_short_p99_s"), ("long p99 ms", "ttft_long_p99_s"), ("TPOT p50 ms", "tpot_p50_s"),
    ("TPOT p99 ms", "tpot_p99_s"), ("ITL p99 ms", "itl_p99_s"), ("padding %", "padding"),
)  # fmt: skip
ALL = ("static4", "dynamic8", "continuous8", "continuous", "chunked", "shortest", "slack", "adaptive", "admission")

NEEDS = {"slack": ("ttft_s",), "adaptive": ("tpot_s",), "admission": ("ttft_s", "tpot_s")}
"""Objectives without which a strategy would be another one."""


def settings(name: str, slo: Slo, chunk: int, rows: int) -> dict[str, Any]:
    """What a strategy sets."""
    objectives = {"ttft_slo_s": slo.ttft_s, "tpot_slo_s": slo.tpot_s}
    adaptive = {"policy": "adaptive", "ordering": "shortest"} | objectives
    return {
        "static4": {"policy": "static", "batch_size": 4, "max_num_seqs": 4},
        "dynamic8": {"policy": "dynamic", "max_batch_size": 8, "max_num_seqs": 8},
        "continuous8": {"policy": "continuous", "max_num_seqs": 8},
        "continuous": {"policy": "continuous"},
        "chunked": {"policy": "chunked", "chunk_size": chunk, "max_num_batched_tokens": chunk + rows},
        "shortest": {
            "policy": "chunked", "chunk_size": chunk, "max_num_batched_tokens": chunk + rows, "ordering": "shortest",
        },
        "slack": {
            "policy": "chunked", "chunk_size": chunk, "max_num_batched_tokens": chunk + rows, "ordering": "slack",
        } | objectives,
        "adaptive": adaptive,
        "admission": adaptive | {"admission": "slo"},
    }[name]  # fmt: skip


def variants(given: argparse.Namespace, stage: Stage, arrivals: Sequence[Arrival]) -> list[Variant]:
    limits = stage.config.scheduler
    slo = Slo() if given.slo is None else Slo.parse(given.slo)
    chosen = given.strategies or [
        name for name in ALL
        if all(getattr(slo, objective) for objective in NEEDS.get(name, ()))
    ]  # fmt: skip
    if unknown := [name for name in chosen if name not in ALL]:
        raise ConfigError(f"strategies = {unknown[0]!r}: give some of {', '.join(ALL)}")
    for name in chosen:
        if missing := [objective for objective in NEEDS.get(name, ()) if not getattr(slo, objective)]:
            wanted = ",".join(f"{objective.removesuffix('_s')}<SECONDS" for objective in missing)
            raise ConfigError(f"strategies = {name!r} goes by an objective: give --slo {wanted}")
    if given.quick:
        chosen = [name for name in chosen if name in ("dynamic8", "chunked")] or chosen[:2]
    rows = limits.max_num_seqs
    budget = max(limits.max_num_batched_tokens, *(a.prompt_tokens for a in arrivals))
    chunk = given.chunk or max(limits.max_num_batched_tokens // 4, 16)
    found: list[Variant] = []
    for name in chosen:
        own = {"max_num_batched_tokens": budget} | settings(name, slo, chunk, rows)
        seqs, tokens = own.get("max_num_seqs", rows), own["max_num_batched_tokens"]
        buckets: dict[str, Any] = {
            "decode_buckets": powers(1, seqs, 4),
            "mixed_decode_buckets": powers(max(seqs // 4, 1), seqs, 4),
            "prefill_buckets": powers(min(32, tokens), tokens),
        }
        found.append(Variant(name, buckets | own))
    return found


def flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("strategies")
    group.add_argument("--strategies", type=words, metavar="A,B", help=f"some of {', '.join(ALL)}")
    group.add_argument(
        "--chunk", type=int, metavar="N", help="chunk size of the chunked ones (a quarter of the budget)"
    )


def draw(folder: Path, result: dict[str, Any]) -> None:
    """Latency against throughput, one point a strategy."""
    rows = result["rows"]
    with plot(
        folder / "strategies.png", "Strategies: throughput, first token, gaps", origin(result), columns=3
    ) as axes:
        names = [row["name"] for row in rows]
        full = [row["saturated_tokens_per_s"] or row["tokens_per_s"] for row in rows]
        axes[0].barh(names, full)
        axes[0].set(xlabel="output tokens/s")
        axes[1].barh(names, [1e3 * (row["ttft_p99_s"] or 0.0) for row in rows], color="#d1495b")
        axes[1].set(xlabel="TTFT p99, ms", xscale="log")
        axes[2].barh(names, [1e3 * (row["itl_p99_s"] or 0.0) for row in rows], color="#2a9d5c")
        axes[2].set(xlabel="ITL p99, ms", xscale="log")
        for panel in axes:
            panel.invert_yaxis()
        for panel in axes[1:]:
            panel.set_yticklabels([])


BENCH = Comparison(name="strategies", doc=__doc__, variants=variants, columns=COLUMNS, draw=draw, flags=flags)
