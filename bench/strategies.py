"""Scheduling strategies compared: `python -m bench.strategies`."""

import sys

from bench.compare.command import main
from bench.compare.strategies import BENCH

if __name__ == "__main__":
    sys.exit(main(BENCH))
