"""One workload under several configurations: `python -m bench.buckets`, `bench.chunks` and `bench.strategies`."""
