"""Chunk sizes and token budgets compared, short prompts among long ones: TTFT of both, TPOT, ITL, throughput.

    python -m bench.chunks                                     the embedded model on this machine
    python -m bench.chunks --simulate --chunks 128,256,512,1024,2048,whole

A chunk is what one step takes of one prompt, the budget what a step takes of everything; `same`: the budget is the
chunk, and room for the decode rows. `whole`: prompts are not cut, and a step that has prompts takes no decodes.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.compare.command import Comparison
from bench.compare.stage import Stage, Variant
from bench.shared.flags import words
from bench.shared.results_file import origin
from jaxserve.commands.plots import plot
from jaxserve.core.errors import ConfigError
from jaxserve.sim.arrivals import Arrival, lognormal, uniform
from jaxserve.tune.bucket_sets import powers

COLUMNS = (
    ("chunk", "chunk"), ("budget", "budget"), ("programs", "programs"), ("padding %", "padding"), ("step ms", "step_s"),
    ("tokens/s at once", "saturated_tokens_per_s"), ("TTFT short p99 ms", "ttft_short_p99_s"),
    ("TTFT long p99 ms", "ttft_long_p99_s"), ("TTFT p50 ms", "ttft_p50_s"), ("TPOT p50 ms", "tpot_p50_s"),
    ("TPOT p99 ms", "tpot_p99_s"), ("ITL p99 ms", "itl_p99_s"), ("goodput %", "goodput"),
)  # fmt: skip


def mixture(rng: random.Random, simulated: bool) -> Arrival:
    """70% short prompts, 30% long ones."""
    short = rng.random() < 0.7
    if simulated:
        prompt = uniform(rng, 16, 99) if short else uniform(rng, 2000, 4000)
        return Arrival(0.0, prompt, lognormal(rng, 4.6, 0.7, 8, 512))
    prompt = uniform(rng, 4, 24) if short else uniform(rng, 256, 448)
    return Arrival(0.0, prompt, lognormal(rng, 2.7, 0.7, 2, 64))


def variants(given: argparse.Namespace, stage: Stage, arrivals: Sequence[Arrival]) -> list[Variant]:
    rows = stage.config.scheduler.max_num_seqs
    longest = max(a.prompt_tokens for a in arrivals)
    chunks = given.chunks or (
        ["128", "512", "2048", "whole"] if given.simulate else ["32", "64", "128", "256", "whole"]
    )
    if given.quick:
        chunks = [chunks[0], chunks[-1]]
    found: list[Variant] = []
    for chunk in chunks:
        for budget in ["same"] if chunk == "whole" or given.quick else given.budgets:
            found.append(_variant(chunk, budget, rows, longest))
    return found


def _variant(chunk: str, budget: str, rows: int, longest: int) -> Variant:
    size = longest if chunk == "whole" else _positive("chunks", chunk)
    prefill = size if budget == "same" else _positive("budgets", budget)
    if prefill < size:
        raise ConfigError(f"budgets = {budget}: less than the chunk ({chunk}): give at least as much, or same")
    settings: dict[str, Any] = {
        "policy": "continuous" if chunk == "whole" else "chunked",
        "chunk_size": None if chunk == "whole" else size,
        "max_num_batched_tokens": prefill + (0 if chunk == "whole" else rows),
        "prefill_buckets": (*(p for p in powers(32, prefill) if p < prefill), prefill),
        "decode_buckets": powers(1, rows, 4),
        "mixed_decode_buckets": powers(max(rows // 4, 1), rows, 4),
    }
    if chunk != "whole":
        settings["prefill_buckets"] = (*settings["prefill_buckets"], prefill + rows)
    labels = {"chunk": chunk, "budget": settings["max_num_batched_tokens"]}
    return Variant(f"chunk {chunk}, budget {budget}", settings, labels)


def _positive(name: str, text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"{name} = {text!r}: give numbers of tokens, {'whole' if name == 'chunks' else 'same'}")
    return int(text)


def flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("chunks")
    group.add_argument("--chunks", type=words, metavar="N,N", help="chunk sizes, the last may be whole")
    group.add_argument("--budgets", type=words, default=["same"], metavar="N,N", help="token budgets (same)")


def draw(folder: Path, result: dict[str, Any]) -> None:
    """What chunks trade: time to first token of the long against gaps between tokens; and throughput."""
    rows = result["rows"]
    names = [f"{row['chunk']}" + ("" if _alone(row, rows) else f"/{row['budget']}") for row in rows]
    places = range(len(rows))
    with plot(folder / "chunks.png", "Chunk size: who waits", origin(result), columns=2) as (a, b):
        for metric, label in (("itl_p99_s", "ITL p99"), ("tpot_p99_s", "TPOT p99"), ("tpot_p50_s", "TPOT p50")):
            a.plot(places, [1e3 * row[metric] for row in rows], "o-", label=label)
        a.set(xlabel="chunk, tokens", ylabel="ms", ylim=0)
        for metric, label in (("ttft_long_p99_s", "long prompts"), ("ttft_short_p99_s", "short prompts")):
            b.plot(places, [1e3 * (row[metric] or 0.0) for row in rows], "s-", label=f"TTFT p99, {label}")
        b.set(xlabel="chunk, tokens", ylabel="ms", ylim=0)
        for axes in (a, b):
            axes.set_xticks(list(places), names)
            axes.legend()


def _alone(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> bool:
    return sum(other["chunk"] == row["chunk"] for other in rows) == 1


BENCH = Comparison(
    name="chunks", doc=__doc__, variants=variants, columns=COLUMNS, draw=draw, flags=flags, mixture=mixture,
    workload={
        True: {"prompt_tokens": "uniform:32,4000", "output_tokens": "lognormal:4.6,0.7,8,512"},
        False: {"prompt_tokens": "uniform:4,448", "output_tokens": "lognormal:2.7,0.7,2,64"},
    },
)  # fmt: skip
