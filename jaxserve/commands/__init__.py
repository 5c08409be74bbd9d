"""Commands of the command line, a module each: `add` declares the flags, `run` does the work."""
