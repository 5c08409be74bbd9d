"""One caller's long text costs the others nothing: it is tokenized on a thread that lets the event loop run."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from jaxserve.assembly import EMBEDDED
from jaxserve.server.service import LONG_TEXT
from jaxserve.text.tokenizer import Tokenizer
from tests.engine.conftest import build_engine
from tests.server.conftest import PATIENCE_S, Letters, fake_service, serve


class Slow(Letters):
    """Takes as long as the test wants for a long text."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        if len(text) >= LONG_TEXT:
            self.begun.set()
            assert self.go_on.wait(PATIENCE_S)
        return super().encode(text, add_special_tokens)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"max_tokens": 1}),
        ("/v1/completions", {"max_tokens": 1, "truncate_prompt_tokens": 5}),
        ("/tokenize", {}),
    ],
    ids=["/generate", "/v1/completions", "/tokenize"],
)
def test_others_are_served_while_a_long_text_is_tokenized(path: str, body: dict) -> None:
    slow = Slow()
    engine = build_engine(max_model_len=2 * LONG_TEXT, blocks=6000, max_num_batched_tokens=2048)
    service = replace(fake_service(engine, max_body_bytes=4 * LONG_TEXT), tokenizer=slow)  # type: ignore[arg-type]
    served = serve(service)
    running = next(served)
    with ThreadPoolExecutor(1) as other:
        hostile = other.submit(running.client.post, path, json=body | {"prompt": "a" * LONG_TEXT})
        assert slow.begun.wait(PATIENCE_S)
        for _ in range(3):
            assert running.client.post("/generate", json={"prompt": "abc", "max_tokens": 2}).status_code == 200
        assert not hostile.done()
        slow.go_on.set()
        assert hostile.result(PATIENCE_S).status_code == 200
    assert next(served, None) is None


def test_the_interpreter_goes_on_while_a_text_is_tokenized() -> None:
    """Or a thread would not help: every other thread would wait for the lock."""
    tokenizer, done = Tokenizer.from_directory(EMBEDDED), threading.Event()

    def encode() -> None:
        begun.set()
        tokenizer.encode("to be or not to be " * 50_000)
        done.set()

    begun, thread, turns = threading.Event(), threading.Thread(target=encode), 0
    thread.start()
    begun.wait(PATIENCE_S)
    while not done.is_set():
        turns += done.wait(0.01) is False
    thread.join(PATIENCE_S)
    assert turns > 3
