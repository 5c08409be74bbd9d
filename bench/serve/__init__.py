"""A load generator for servers that speak the OpenAI API: `python -m bench.serve`."""
