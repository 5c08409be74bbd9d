"""Batch jobs that outlive the process: files and batches in a folder, lines run in whatever capacity is left."""
