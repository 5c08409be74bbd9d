"""How wrong is the simulator? The same requests on the real engine and on the virtual clock.

    python -m bench.fidelity                        the embedded model, on this machine's CPU: about three minutes
    python -m bench.fidelity --json fidelity.json

Each repeat learns step times from one workload, and predicts another, of other lengths, that it has not seen: all at
once (saturation), and as a Poisson process at a share of what saturation served, in three runs each. Runs that are
learnt from stand between those that are predicted, since a shared machine's speed drifts, by a third for a second or
two; how far it did is said below the table. A round in which other processes took more than a twentieth of the
processors is made again, whatever came out of it; after `--tries` it counts, and the table says so. Shown are medians
over the repeats of prediction and measurement, and of the error's size. The measured run is recorded, too, and replayed
decision by decision. Exit status 1: a bar was missed.
"""

import argparse
import sys
from pathlib import Path

from bench.fidelity.prediction import Conditions, Pairs, predict, rows, said_of_drift, said_of_others, shown
from bench.fidelity.rounds import SETTINGS, Recorded, all_lengths, quiet_round, requests
from bench.shared.results_file import record as result_of
from bench.shared.results_file import write
from jaxserve.commands.results import expect_file
from jaxserve.core.errors import JaxserveError
from jaxserve.core.settings import require


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fidelity", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--requests", type=int, default=100, help="requests of a run (default 100)")
    parser.add_argument("--load", type=float, default=0.8, help="share of the saturation rate (default 0.8)")
    parser.add_argument("--seed", type=int, default=1, help="of everything drawn (default 1)")
    parser.add_argument("--tries", type=int, default=4, help="times that a disturbed round is made (default 4)")
    parser.add_argument("--quick", action="store_true", help="one short round, to see that it works: no figure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    given = parser.parse_args(arguments)
    if given.quick:
        given.repeats, given.requests, given.tries = 1, 8, 1
    try:
        expect_file(given.json)
        for name in ("repeats", "requests", "load", "tries"):
            require(getattr(given, name) > 0, name, getattr(given, name), "a positive number")
        real = Recorded(SETTINGS)
        pairs, conditions = Pairs(), Conditions()
        real.warm_up(requests(0, given.requests, all_lengths, None))
        for i in range(given.repeats):
            predict(quiet_round(real, given, given.seed + 100 * i), pairs, conditions)
            print(f"round {i + 1} of {given.repeats} done", file=sys.stderr)
    except JaxserveError as error:
        print(f"bench.fidelity: {error}", file=sys.stderr)
        return 2
    table_rows = rows(pairs, conditions.decisions)
    print(shown(table_rows))
    print(said_of_others(conditions.others))
    print(said_of_drift(conditions.drift))
    if given.json:
        seeds = [given.seed + 100 * i for i in range(given.repeats)]
        write(
            given.json,
            result_of("fidelity", given, table_rows, seeds=seeds)
            | {"others": conditions.others, "drift": conditions.drift},
        )
    return 0 if given.quick or all(row["bar"] is None or row["error"] <= row["bar"] for row in table_rows) else 1


if __name__ == "__main__":
    sys.exit(main())
