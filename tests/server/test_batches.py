"""`/v1/files` and `/v1/batches` with the `openai` client, on the embedded model."""

import dataclasses
import errno
import io
import json
import tempfile

import httpx
import openai
import pytest
from starlette.formparsers import MultiPartParser

from tests.server.conftest import Running, log_lines, wait_for


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
    def ended() -> bool:
        batch = client.batches.retrieve(batch_id)
        assert batch.status in (status, "validating", "in_progress", "finalizing", "cancelling"), batch
        return batch.status == status

    wait_for(ended)
    return client.batches.retrieve(batch_id)


def lines(client: openai.OpenAI, file_id: str) -> list[dict]:
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def test_files(client: openai.OpenAI) -> None:
    file_id = upload(client, [entry(0)])
    stored = client.files.retrieve(file_id)
    assert stored.filename == "in.jsonl" and stored.purpose == "batch" and stored.object == "file"
    assert lines(client, file_id) == [entry(0)] and stored.bytes == len(json.dumps(entry(0))) + 1
    assert file_id in [file.id for file in client.files.list(purpose="batch", limit=3)]
    older, newer = file_id, upload(client, [entry(1)])
    ids = [file.id for file in client.files.list(purpose="batch", order="asc", limit=1000)]
    assert ids.index(older) < ids.index(newer)
    assert [file.id for file in client.files.list(purpose="batch", order="desc")] == ids[::-1]
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


def test_what_the_log_says_of_a_batch(client: openai.OpenAI, embedded: Running) -> None:
    """A line a status, and one for every line that ran, with its numbers and without its text."""
    entries = [entry(0, user="ada"), entry(1, temperature=-1)]
    with log_lines(0) as found:
        asked = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = wait(client, client.batches.create(input_file_id=upload(client, entries), **asked).id)
        wait_for(lambda: any(line["event"] == "batch" and line["status"] == "completed" for line in list(found)))
    told = [line for line in found if line.get("batch_id") == batch.id]
    statuses = [line["status"] for line in told if line["event"] == "batch"]
    statuses.remove("validating")  # the request says so, and the runner may be faster
    assert statuses == ["in_progress", "finalizing", "completed"]
    told.sort(key=lambda line: line.get("status") == "completed")
    assert told[-1] | {"tenant": "default", "lines": 2, "completed": 1, "failed": 1} == told[-1]
    good, bad = sorted((line for line in told if line["event"] == "batch line"), key=lambda line: line["line"])
    assert good["status"] == 200 and good["tenant"] == "batch" and good["user"] == "ada" and good["line"] == 1
    assert good["output_tokens"] == 4 and good["finish_reasons"] == ["length"] and good["ttft_s"] > 0
    assert bad["status"] == 400 and bad["error"] == "InvalidParameter" and bad["line"] == 2
    answers = {one["response"]["request_id"] for one in lines(client, batch.output_file_id)}
    assert answers == {good["request_id"]} and "Speak" not in json.dumps(told)


def test_a_line_that_breaks_the_server_is_its_result(
    client: openai.OpenAI, embedded: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong with a line, its batch ends, and the next one runs."""
    render = embedded.app.state.service.tokenizer.render_chat

    def breaking(messages: list[dict], **options: object) -> str:
        if messages[0]["content"] == "Speak 1.":
            raise MemoryError("no template can do this")
        return render(messages, **options)

    monkeypatch.setattr(embedded.app.state.service.tokenizer, "render_chat", breaking)
    asked = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    file_id = upload(client, [entry(i) for i in range(3)])
    batch = wait(client, client.batches.create(input_file_id=file_id, **asked).id)
    assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 1)
    (bad,) = lines(client, batch.error_file_id)
    assert bad["custom_id"] == "c1" and bad["response"]["status_code"] == 500
    assert bad["response"]["body"]["error"]["message"] == "internal error: MemoryError"


def test_a_server_that_cannot_finish_a_line_begins_none(embedded: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, state = embedded.app.state.batches, embedded.app.state.server
    assert kept.room(embedded.app.state.service, state) == 4
    for name, value in [("phase", "draining"), ("trouble", lambda: "the engine has stopped")]:
        with monkeypatch.context() as patch:
            patch.setattr(state, name, value)
            assert kept.room(embedded.app.state.service, state) == 0


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
        input_file_id=upload(client, entries), endpoint="/v1/chat/completions", completion_window="1s"
    )  # fmt: skip
    batch = wait(client, begun.id, "expired")
    assert batch.request_counts.completed + batch.request_counts.failed == 60
    assert lines(client, batch.error_file_id)[-1]["error"]["code"] == "batch_expired"


def test_a_file_that_is_wrong(client: openai.OpenAI) -> None:
    file_id = upload(client, [entry(0), entry(1, url="/v1/completions")])
    begun = client.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")
    batch = wait(client, begun.id, "failed")
    assert batch.errors.data[0].line == 2 and batch.errors.data[0].code == "mismatched_url"


def test_refusals(client: openai.OpenAI, embedded: Running, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
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
    good["input_file_id"] = upload(client, [entry(0, url="/v1/completions")])
    with monkeypatch.context() as patch:
        config = dataclasses.replace(embedded.app.state.batches.config, batch_max_open=1)
        patch.setattr(embedded.app.state.batches, "config", config)
        patch.setattr(embedded.app.state.batches, "room", lambda service, state: 0)
        first = embedded.client.post("/v1/batches", json=good).json()
        refused = embedded.client.post("/v1/batches", json=good)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        client.batches.cancel(first["id"])
        wait(client, first["id"], "cancelled")
    assert embedded.client.get("/v1/files?limit=0").status_code == 400
    for query, param in [("order=upwards", "order"), ("limits=5", "limits"), ("after=file-none", "after")]:
        response = embedded.client.get(f"/v1/files?{query}")
        assert response.status_code == 400 and response.json()["error"]["param"] == param
    assert embedded.client.get("/v1/batches?order=asc").json()["error"]["param"] == "order", "only files have one"
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
