"""`python -m bench.soak`: a real server, abused for minutes and killed on the way; then nothing may be missing."""
