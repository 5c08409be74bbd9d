"""`jaxserve buckets`: the few program sizes that waste least on a trace."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from jaxserve.commands.plots import expect_plots, plot
from jaxserve.commands.results import expect_file, write_text
from jaxserve.commands.settings_flags import WideFormatter, add_settings, config_from_flags
from jaxserve.commands.tables import table
from jaxserve.commands.workload_flags import add_cost, add_workload, read_cost, read_workload
from jaxserve.core.buckets import BucketTable
from jaxserve.core.config import EngineConfig
from jaxserve.core.config_file import to_toml
from jaxserve.core.settings import require
from jaxserve.sim.step_sizes import ProgramSeconds, step_sizes
from jaxserve.tune.bucket_search import BucketSet, Steps, best_sets, cost_of, powers_of_two, tokens

_EXAMPLE = """\
example:
  jaxserve buckets --trace azure_2023_conv.jsonl --programs 24 --cost h200_8b_roofline \\
    --config configs/h200.toml --num-blocks 12500 --write fitted.toml

The trace runs on the simulator with programs of every size, and the steps are counted by their sizes. From that
histogram the best set is computed exactly (`jaxserve.tune.bucket_search`), for every number of programs up to
--programs. A step that is padded costs what its program costs.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "buckets",
        help="fit bucket sizes to a trace",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=WideFormatter,
    )
    parser.set_defaults(run=run)
    add_workload(parser)
    add_cost(parser)
    group = parser.add_argument_group("search")
    group.add_argument("--programs", type=int, default=24, metavar="K", help="most programs (default 24)")
    group.add_argument("--objective", choices=("seconds", "tokens"), default="seconds", help="what padding costs")
    group.add_argument("--decode-multiple", type=int, default=1, metavar="N", help="decode sizes are multiples of N")
    group.add_argument("--prefill-multiple", type=int, default=16, metavar="N", help="prefill sizes likewise (16)")
    group.add_argument("--compile-s", type=float, default=2.0, metavar="S", help="seconds to compile a program (2)")
    group.add_argument("--compile-budget", type=float, metavar="S", help="most seconds to compile all of them")
    group.add_argument("--write", type=Path, metavar="FILE", help="write a config.toml with the set")
    group.add_argument("--png", type=Path, metavar="FILE", help="draw what more programs gain")
    add_settings(parser)


def run(given: argparse.Namespace) -> int:
    config = config_from_flags(given)
    for path in (given.write, given.png):
        expect_file(path)
    expect_plots(given.png)
    for name in ("programs", "decode_multiple", "prefill_multiple", "compile_s"):
        require(getattr(given, name) > 0, name, getattr(given, name), "a positive number")
    programs = given.programs
    if given.compile_budget is not None:
        enough = given.compile_budget >= 3 * given.compile_s
        require(enough, "compile_budget", given.compile_budget, f"at least {3 * given.compile_s:g} s")
        programs = int(min(programs, given.compile_budget / given.compile_s))
    cost, workload = read_cost(given, config), read_workload(given)
    name = Path(given.trace).name if given.trace else "drawn requests"
    steps = step_sizes(config, workload.list(), cost, given.prefill_multiple).steps
    require(bool(steps), "requests", name, "some that fit the KV pool")
    comparison = Comparison(given, config, steps, cost, programs)
    print(f"{sum(steps.values()):,} steps, {len(steps):,} sizes; step times: {cost.source}\n")
    print(comparison.curve() + "\n")
    print(comparison.rivals())
    best = comparison.sets[-1]
    chosen = dataclasses.replace(config, buckets=best.config(config.buckets.prefill_rows))
    text = to_toml(chosen, f"Buckets fitted to {name}: {best.programs} programs. {cost.source}.")
    print("\n" + text[text.index("[buckets]") :].split("\n\n")[0])
    if given.write:
        write_text(given.write, text)
        print(f"wrote {given.write}")
    if given.png:
        comparison.draw(given.png, name)
        print(f"wrote {given.png}")
    return 0


class Comparison:
    """The best sets for every number of programs, beside powers of two and what the configuration has."""

    def __init__(self, given: argparse.Namespace, config: EngineConfig, steps: Steps, cost: Any, programs: int) -> None:
        self._steps, self._compile_s, self._source = steps, given.compile_s, cost.source
        self._in_seconds = given.objective == "seconds"
        self._cost = ProgramSeconds(cost, config.buckets.prefill_rows) if self._in_seconds else tokens
        own = BucketTable.from_config(config.buckets, config.scheduler)
        self._own = BucketSet(own.decode, own.prefill, own.mixed_decode)
        limits = config.scheduler  # and not the ends of its buckets, which may be beyond
        self._limits = {"max_decode": limits.max_num_seqs, "max_prefill": limits.max_num_batched_tokens}
        self.sets = best_sets(
            steps, programs, decode_multiple=given.decode_multiple, prefill_multiple=given.prefill_multiple,
            cost=self._cost, **self._limits,
        )  # fmt: skip
        self._powers = [powers_of_two(steps, s.programs, cost=self._cost, **self._limits) for s in self.sets]
        self._floor = sum(count * self._cost(*step) for step, count in steps.items())

    def curve(self) -> str:
        """What each number of programs costs, what it gains over the one before, and powers of two for as many."""
        rows: list[list[object]] = []
        for before, buckets, powers in zip([None, *self.sets], self.sets, self._powers, strict=False):
            gain = f"{1 - buckets.cost / before.cost:.2%}" if before else None
            twos = f"{self._overhead(powers):.2%}"
            rows.append([*self._figures(buckets), gain, twos, buckets.programs * self._compile_s])
        return table(["programs", "padding", self._over, "gain", "powers of two", "compile s"], rows)

    def rivals(self) -> str:
        """The set, powers of two with as many programs, and the configuration's own."""
        sets = (("fitted", self.sets[-1]), ("powers of two", self._powers[-1]), ("as configured", self._own))
        rows = [[name, *self._figures(b), b.decode, b.mixed_decode, b.prefill] for name, b in sets]
        return table(["set", "programs", "padding", self._over, "decode", "mixed decode", "prefill"], rows)

    def draw(self, path: Path, trace: str) -> None:
        sizes = [buckets.programs for buckets in self.sets]
        with plot(path, f"What more programs gain: {trace}", f"step times: {self._source}") as axes:
            axes.plot(sizes, [100 * self._overhead(b) for b in self.sets], "o-", label="fitted to the trace")
            axes.plot(sizes, [100 * self._overhead(b) for b in self._powers], "s--", label="powers of two")
            axes.set(xlabel="programs", ylabel=f"{'time' if self._in_seconds else 'tokens'} lost to padding, %", ylim=0)
            axes.legend()

    @property
    def _over(self) -> str:
        return "time lost" if self._in_seconds else "tokens lost"

    def _overhead(self, buckets: BucketSet) -> float:
        """Cost over that of programs of every size, less 1."""
        return cost_of(buckets, self._steps, self._cost) / self._floor - 1.0

    def _figures(self, buckets: BucketSet) -> tuple[int, str, str]:
        real = sum(count * (d + p) for (d, p), count in self._steps.items())
        padding = 1.0 - real / cost_of(buckets, self._steps)
        return buckets.programs, f"{padding:.2%}", f"{self._overhead(buckets):.2%}"
