"""Written by `python -m bench.tiles --target h200 --write`: no GPU has timed them."""

DECODE = {  # (head dimension, bytes of a page's number): (tokens, stages)
    (64, 2): (64, 2), (96, 2): (64, 2), (128, 2): (64, 2), (256, 2): (32, 2),
    (64, 1): (64, 3), (96, 1): (64, 2), (128, 1): (64, 2), (256, 1): (32, 2),
}  # fmt: skip

PREFILL = {  # (head dimension, bytes of a page's number): (tokens, stages, computing)
    (64, 2): (128, 2, 2), (96, 2): (128, 2, 2), (128, 2): (128, 2, 2), (256, 2): (64, 2, 2),
    (64, 1): (64, 2, 2), (96, 1): (64, 2, 2), (128, 1): (64, 2, 2), (256, 1): (64, 1, 1),
}  # fmt: skip
