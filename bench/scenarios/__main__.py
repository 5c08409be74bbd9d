"""`python -m bench.scenarios S1 [--real]`: a table, its JSON and its picture; status 1 if a bar is missed."""

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.scenarios import (
    azure,
    s1_batching,
    s2_chunks,
    s3_tenants,
    s4_adaptive,
    s5_admission,
    s6_fairness,
    s7_hostile,
    s8_agents,
)
from bench.scenarios.stage import Real, Simulated
from jaxserve.commands.plots import expect_plots
from jaxserve.commands.results import expect_folder, write_text
from jaxserve.core.errors import ConfigError, JaxserveError

SCENARIOS = {
    module.NAME: module
    for module in (s1_batching, s2_chunks, s3_tenants, s4_adaptive, s5_admission, s6_fairness, s7_hostile, s8_agents)
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scenarios", description=__doc__.splitlines()[0])
    parser.add_argument("scenario", choices=[*SCENARIOS], help="which")
    parser.add_argument("--real", action="store_true", help="on the real engine, a small model on this CPU")
    parser.add_argument("--traces", type=Path, help=f"folder with {' and '.join(azure.FILES)}, which S3, S4, S5 replay")
    parser.add_argument("--out", type=Path, default=Path("bench/results/scenarios"), help="where the results go")
    given = parser.parse_args(arguments)
    try:
        return run(given)
    except JaxserveError as error:
        print(f"bench.scenarios: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def run(given: argparse.Namespace) -> int:
    module, needed = SCENARIOS[given.scenario], ()
    if getattr(module, "NEEDS_TRACES", False):
        if given.traces is None:
            raise ConfigError(f"{given.scenario} replays {' and '.join(azure.FILES)}: give their folder, --traces DIR")
        needed = (given.traces,)
    expect_folder(given.out)
    expect_plots(given.out)
    outcome = module.run(Real() if given.real else Simulated(), *needed)
    print(outcome.text())
    stem = given.out / f"{given.scenario.lower()}_{'cpu' if given.real else 'sim'}"
    machine = {"python": platform.python_version(), "cores": len(os.sched_getaffinity(0))}
    write_text(stem.with_suffix(".json"), outcome.to_json(machine))
    write_text(stem.with_suffix(".md"), outcome.markdown())
    written = ["json", "md"]
    if outcome.plot:
        outcome.draw(stem.with_suffix(".png"))
        written.append("png")
    print(f"wrote {', '.join(str(stem.with_suffix('.' + suffix)) for suffix in written)}")
    return 0 if outcome.met else 1


if __name__ == "__main__":
    sys.exit(main())
