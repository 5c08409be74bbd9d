"""What the record of decisions costs the scheduler: `python -m bench.journal`."""

import sys

from bench.overhead.journal import main

if __name__ == "__main__":
    sys.exit(main())
