"""What bodies may hold, and what answers hold: pydantic models, from which `/openapi.json` is made."""
