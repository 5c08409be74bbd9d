"""One workload under several configurations: what `bench.buckets`, `bench.chunks` and `bench.strategies` share."""
