"""A conversation with the server through the `openai` package, as it streams: `pip install openai`."""

import sys

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
messages = [{"role": "user", "content": " ".join(sys.argv[1:]) or "Who art thou?"}]
for chunk in client.chat.completions.create(model="embedded", messages=messages, max_tokens=64, stream=True):
    print(chunk.choices[0].delta.content, end="", flush=True)
print()
