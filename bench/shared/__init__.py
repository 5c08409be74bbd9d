"""What benchmarks share: models, requests, the machine and its rates, and results as files."""
