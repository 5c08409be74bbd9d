"""Who runs in the next step, with how many tokens, in which bucket."""
