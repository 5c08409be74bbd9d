"""Batch policies: when a batch may start and how many tokens a step takes. One file each."""
