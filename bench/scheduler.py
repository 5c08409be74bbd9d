"""Row decisions a second of the scheduler and block manager alone: `python -m bench.scheduler`."""

import sys

from bench.overhead.scheduler import main

if __name__ == "__main__":
    sys.exit(main())
