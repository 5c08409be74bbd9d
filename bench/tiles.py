"""The tile table of the Mosaic GPU kernels: `python -m bench.tiles`."""

import sys

from bench.compile.tiles import main

if __name__ == "__main__":
    sys.exit(main())
