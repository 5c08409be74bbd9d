"""From typing the command to the first token: `python -m bench.start`."""

import sys

from bench.overhead.start import main

if __name__ == "__main__":
    sys.exit(main())
