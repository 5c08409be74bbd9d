"""What single parts of the host cost, each a command of its own: the scheduler (`python -m bench.scheduler`), packing,
the journal, metrics, HTTP, a start."""
