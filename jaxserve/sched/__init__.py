"""Which sequences run in the next step, with how many tokens, in which bucket."""
