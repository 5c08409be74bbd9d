"""What packing to the buckets' edges saves: `python -m bench.packing`."""

import sys

from bench.overhead.packing import main

if __name__ == "__main__":
    sys.exit(main())
