"""The device side: KV arrays, padded batches, the compiled programs, the runner that drives them."""
