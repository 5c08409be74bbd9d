"""Chunk sizes and token budgets compared: `python -m bench.chunks`."""

import sys

from bench.compare.chunks import BENCH
from bench.compare.command import main

if __name__ == "__main__":
    sys.exit(main(BENCH))
