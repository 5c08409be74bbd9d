"""Seeded workloads, each with the policies it sets side by side and the bars it has to meet.

python -m bench.scenarios S1                       on the virtual clock, with the H200's nominal cost model
python -m bench.scenarios S1 --real                the same code on the real engine, a small model on this CPU

A bar is a ratio between two policies on the same seeded list of requests; in S7 it is the ratio of one tenant's times
beside two neighbours. The median over the seeds must meet it, and every seed nine tenths of it.
"""
