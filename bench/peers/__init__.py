"""Other engines on the requests of `bench.throughput`, each in an environment of its own; `python -m bench.peers` runs
them in turn with ours. A module of this folder that can be run is a peer: it imports nothing of jaxserve, nor JAX."""
