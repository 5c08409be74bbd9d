"""Benchmarks. Each is a command (`python -m bench.NAME`), prints a table, and names the machine it ran on."""
