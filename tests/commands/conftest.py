"""A small trace: 60 requests of two kinds."""

import json
import random
from pathlib import Path

import pytest


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rng = random.Random(1)
    path, at = tmp_path / "trace.jsonl", 0.0
    with path.open("w") as file:
        for i in range(60):
            at += rng.expovariate(8.0)
            prompt = rng.randint(8, 60) if i % 3 else rng.randint(200, 400)
            fields = {"arrival_s": at, "prompt_tokens": prompt, "output_tokens": rng.randint(1, 20)}
            file.write(json.dumps(fields) + "\n")
    return path
