"""The thin Starlette layer over the engine loop."""
