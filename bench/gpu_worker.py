"""One part of `bench.gpu` in this process: `python -m bench.gpu_worker`."""

import sys

from bench.gpu.worker import main

if __name__ == "__main__":
    sys.exit(main())
