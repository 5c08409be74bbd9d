"""`python -m bench.compile`: kernels and steps compiled for a GPU that is absent; `python -m bench.tiles`: the tiles of
the Mosaic kernels."""
