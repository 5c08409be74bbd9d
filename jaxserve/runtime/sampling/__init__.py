"""Logits to tokens: the sampler, its variants, and what it keeps of each slot."""
