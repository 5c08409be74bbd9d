"""Sets of buckets compared: `python -m bench.buckets`."""

import sys

from bench.compare.buckets import BENCH
from bench.compare.command import main

if __name__ == "__main__":
    sys.exit(main(BENCH))
