"""`python -m bench.gpu`: everything that only a GPU can tell, each part in a process of its own."""
