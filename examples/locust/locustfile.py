"""Load an OpenAI-compatible server from locust, with the times that matter of a stream.

    pip install locust
    locust -f examples/locust/locustfile.py --host http://127.0.0.1:8000 --headless -u 8 -r 4 -t 30s

Beside locust's own row (until the whole answer is there) two more appear: TTFT, the time from sending a request to its
first token, and TPOT, the mean time between the tokens after it. Set API_KEY for a server with keys.
"""

import json
import os
import random
import time

from locust import HttpUser, constant, task

PATH = "/v1/completions"
LINES = ("ROMEO:\n", "JULIET:\nO ", "KING HENRY:\nOnce more ", "First Citizen:\n")


class StreamingUser(HttpUser):
    """Asks for one completion after another and reads it as it comes."""

    wait_time = constant(0)
    max_tokens = 64

    @task
    def complete(self) -> None:
        body = {
            "prompt": random.choice(LINES) * random.randint(1, 8),
            "max_tokens": self.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        headers = {"Authorization": f"Bearer {os.environ.get('API_KEY', 'none')}"}
        began = time.perf_counter()
        first = last = None
        tokens = 0
        with self.client.post(PATH, json=body, headers=headers, stream=True, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"{response.status_code}: {response.text[:200]}")
                return
            for line in response.iter_lines(chunk_size=None):
                if not line.startswith(b"data: ") or line == b"data: [DONE]":
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    response.failure(event["error"]["message"])
                    return
                if event.get("usage"):
                    tokens = event["usage"]["completion_tokens"]
                if event["choices"]:
                    last = time.perf_counter()
                    first = first or last
        if first is None:
            return
        self._tell("TTFT", first - began)
        if tokens > 1:
            self._tell("TPOT", (last - first) / (tokens - 1))

    def _tell(self, name: str, seconds: float) -> None:
        self.environment.events.request.fire(
            request_type="stream", name=name, response_time=1e3 * seconds, response_length=0, exception=None, context={}
        )
