"""The compiled programs of an engine: lowered, compiled ahead of time, kept in tables."""
