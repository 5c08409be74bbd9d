"""What metrics cost, as a share of the steps' time: `python -m bench.metrics_cost`."""

import sys

from bench.overhead.metrics_cost import main

if __name__ == "__main__":
    sys.exit(main())
