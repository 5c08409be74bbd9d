"""`python -m bench.scenarios S1 [--real]`: a table, its JSON and its picture; status 1 if a bar is missed."""

import argparse
import os
import platform
import sys
from pathlib import Path

from bench.scenarios import s1_batching, s2_chunks, s3_tenants, s4_adaptive, s5_admission, s6_fairness
from bench.scenarios.stage import Real, Simulated

SCENARIOS = {
    module.NAME: module for module in (s1_batching, s2_chunks, s3_tenants, s4_adaptive, s5_admission, s6_fairness)
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scenarios", description=__doc__.splitlines()[0])
    parser.add_argument("scenario", choices=[*SCENARIOS], help="which")
    parser.add_argument("--real", action="store_true", help="on the real engine, a small model on this CPU")
    parser.add_argument("--traces", type=Path, help="folder of the request traces, for the scenarios that replay them")
    parser.add_argument("--out", type=Path, default=Path("bench/results/scenarios"), help="where the results go")
    given = parser.parse_args()
    stage = Real() if given.real else Simulated()
    module = SCENARIOS[given.scenario]
    outcome = module.run(stage, given.traces) if getattr(module, "NEEDS_TRACES", False) else module.run(stage)
    print(outcome.text())
    given.out.mkdir(parents=True, exist_ok=True)
    stem = given.out / f"{given.scenario.lower()}_{'cpu' if given.real else 'sim'}"
    machine = {"python": platform.python_version(), "cores": len(os.sched_getaffinity(0))}
    stem.with_suffix(".json").write_text(outcome.to_json(machine))
    stem.with_suffix(".md").write_text(outcome.markdown())
    if outcome.plot:
        outcome.draw(stem.with_suffix(".png"))
    return 0 if outcome.met else 1


if __name__ == "__main__":
    sys.exit(main())
