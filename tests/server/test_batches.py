"""`/v1/files` and `/v1/batches` with the `openai` client, on the embedded model."""

import errno
import io
import json
import tempfile
import time

import httpx
import openai
import pytest
from starlette.formparsers import MultiPartParser

from tests.server.conftest import Running


@pytest.fixture(scope="module")
def client(embedded: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{embedded.url}/v1", api_key="none", max_retries=0, timeout=60)


def entry(i: int, url: str = "/v1/chat/completions", **body: object) -> dict:
    asked = {"messages": [{"role": "user", "content": f"Speak {i}."}], "max_tokens": 4, "temperature": 0} | body
    return {"custom_id": f"c{i}", "method": "POST", "url": url, "body": asked}


def upload(client: openai.OpenAI, entries: list[dict]) -> str:
    content = "".join(json.dumps(one) + "\n" for one in entries).encode()
    return client.files.create(file=("in.jsonl", io.BytesIO(content)), purpose="batch").id


def wait(client: openai.OpenAI, batch_id: str, status: str = "completed"):
    for _ in range(600):
        batch = client.batches.retrieve(batch_id)
        if batch.status == status:
            return batch
        assert batch.status in ("validating", "in_progress", "finalizing", "cancelling"), batch
        time.sleep(0.05)
    raise AssertionError(f"the batch stays {batch.status}")


def lines(client: openai.OpenAI, file_id: str) -> list[dict]:
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def test_files(client: openai.OpenAI) -> None:
    file_id = upload(client, [entry(0)])
    stored = client.files.retrieve(file_id)
    assert stored.filename == "in.jsonl" and stored.purpose == "batch" and stored.object == "file"
    assert lines(client, file_id) == [entry(0)] and stored.bytes == len(json.dumps(entry(0))) + 1
    assert file_id in [file.id for file in client.files.list(purpose="batch", limit=3)]
    assert client.files.delete(file_id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file_id)


def test_a_batch_answers_as_the_endpoint_does(client: openai.OpenAI) -> None:
    entries = [entry(i) for i in range(12)] + [entry(12, temperature=-1), entry(13, tools=[{"type": "function"}])]
    asked = {"input_file_id": upload(client, entries), "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    begun = client.batches.create(**asked, metadata={"for": "a test"})
    assert begun.status == "validating" and begun.metadata == {"for": "a test"}
    batch = wait(client, begun.id)
    assert batch.request_counts.model_dump() == {"total": 14, "completed": 12, "failed": 2}
    good, bad = lines(client, batch.output_file_id), lines(client, batch.error_file_id)
    assert [one["custom_id"] for one in good] == [f"c{i}" for i in range(12)]
    direct = client.chat.completions.create(model="embedded", **entries[3]["body"])
    assert good[3]["response"]["body"]["choices"][0]["message"]["content"] == direct.choices[0].message.content
    assert [one["response"]["body"]["error"]["param"] for one in bad] == ["temperature", "tools"]
    assert begun.id in [one.id for one in client.batches.list(limit=5)]
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(begun.id)


def test_cancelling(client: openai.OpenAI, embedded: Running) -> None:
    entries = [entry(i, max_tokens=300, ignore_eos=True) for i in range(80)]
    file_id = upload(client, entries)
    begun = client.batches.create(
        input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
    )  # fmt: skip
    with pytest.raises(openai.ConflictError, match="cancel it"):
        client.files.delete(file_id)
    # chat is served while the batch runs
    asked = {"model": "embedded", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
    assert client.chat.completions.create(**asked).choices
    assert client.batches.cancel(begun.id).status == "cancelling"
    batch = wait(client, begun.id, "cancelled")
    assert batch.request_counts.completed < 80


def test_a_window_that_ends(client: openai.OpenAI) -> None:
    entries = [entry(i, max_tokens=400, ignore_eos=True) for i in range(60)]
    begun = client.batches.create(
        input_file_id=upload(client, entries), endpoint="/v1/chat/completions", completion_window="2s"
    )  # fmt: skip
    batch = wait(client, begun.id, "expired")
    assert batch.request_counts.completed + batch.request_counts.failed == 60
    assert lines(client, batch.error_file_id)[-1]["error"]["code"] == "batch_expired"


def test_a_file_that_is_wrong(client: openai.OpenAI) -> None:
    file_id = upload(client, [entry(0), entry(1, url="/v1/completions")])
    begun = client.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")
    batch = wait(client, begun.id, "failed")
    assert batch.errors.data[0].line == 2 and batch.errors.data[0].code == "mismatched_url"


def test_refusals(client: openai.OpenAI, embedded: Running, running: Running) -> None:
    good = {"input_file_id": "file-none", "endpoint": "/v1/completions", "completion_window": "24h"}
    for changed, status in [
        ({}, 404), ({"endpoint": "/v1/embeddings"}, 400), ({"completion_window": "soon"}, 400),
        ({"completion_window": "0h"}, 400), ({"metadata": {"a": 5}}, 400), ({"priority": 1}, 400),
    ]:  # fmt: skip
        response = embedded.client.post("/v1/batches", json=good | changed)
        assert response.status_code == status, response.text
    file = {"file": ("a", b"x")}
    assert embedded.client.post("/v1/files", files=file, data={"purpose": "fine-tune"}).status_code == 400
    assert embedded.client.post("/v1/files", data={"purpose": "batch"}).status_code == 400
    assert embedded.client.post("/v1/files", content=b"x").status_code == 400
    big = embedded.client.post("/v1/files", files={"file": ("a", b"x" * 60_000)}, data={"purpose": "batch"})
    assert big.status_code == 413 and "batch_max_file_bytes" in big.json()["error"]["message"]
    assert embedded.client.get("/v1/files?limit=0").status_code == 400
    assert embedded.client.get("/v1/files/nothing/content").status_code == 404
    off = httpx.get(f"{running.url}/v1/files")
    assert off.status_code == 404 and "--batch-dir" in off.json()["error"]["message"]


def test_an_upload_that_the_temporary_folder_has_no_room_for(
    embedded: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large upload is spooled there before the store sees it."""

    def full(file: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MultiPartParser, "spool_max_size", 10)
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", full)
    files = {"file": ("in.jsonl", b"x" * 1000)}
    response = embedded.client.post("/v1/files", files=files, data={"purpose": "batch"})
    assert response.status_code == 507 and "make room in" in response.json()["error"]["message"]
