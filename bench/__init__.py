"""Benchmarks. Each is a command (`python -m bench.NAME`), prints a table, and names the machine it ran on.

    compile  gpu                  kernels and steps: compiled for a GPU that is absent, and measured on one
    compare  tuning  scenarios    policies and settings against each other, on the real engine or on the virtual clock
    fidelity                      the simulator against the real engine
    throughput  peers  serve      output tokens a second, beside other engines, and of any server over HTTP
    overhead                      what single parts of the host cost
    soak                          a server under abuse
    stage.py  shared              what they have in common

A command whose code is a module of a package has a module of its own name here, which only starts it.
"""
