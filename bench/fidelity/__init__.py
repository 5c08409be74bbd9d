"""`python -m bench.fidelity`: what the simulator predicts against what the real engine does."""
