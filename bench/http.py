"""What HTTP costs beside the engine alone: `python -m bench.http`."""

import sys

from bench.overhead.http import main

if __name__ == "__main__":
    sys.exit(main())
