"""The soak's own eyes: that it notices what it looks for; and, slow, that a server comes through a short one."""

import asyncio
import json
import random
from pathlib import Path

import pytest

from bench.soak import __main__ as command
from bench.soak import jobs as jobs_module
from bench.soak.disk import Disk
from bench.soak.jobs import Expected, Jobs
from bench.soak.outcome import Tally
from bench.soak.process import busy
from bench.soak.wire import Reply, message, parse


def result(custom_id: str, tokens: int) -> dict:
    body = {"usage": {"completion_tokens": tokens}}
    return {"custom_id": custom_id, "response": {"status_code": 200, "body": body}, "error": None}


REFUSED = {"custom_id": "c", "response": {"status_code": 400, "body": {}}, "error": None}


@pytest.mark.parametrize(
    ("results", "failing"),
    [
        ([result("a", 3), result("b", 1), REFUSED], set()),
        ([result("a", 3), REFUSED], {"batch lines lost"}),
        ([result("a", 3), result("b", 1), result("b", 1), REFUSED], {"batch lines doubled"}),
        ([result("a", 2), result("b", 1), REFUSED], {"batch lines with another result"}),
        ([result("a", 3), result("b", 1), result("c", 1)], {"batch lines with another result"}),
        ([result("a", 3), result("b", 1), REFUSED, result("d", 1)], {"batch lines with another result"}),
    ],
)
def test_lines_lost_doubled_or_different(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, results: list[dict], failing: set[str]
) -> None:
    async def batches(port: int) -> list[dict]:
        return [{"metadata": {"name": "one"}, "status": "completed", "output_file_id": "o", "error_file_id": None}]

    async def read(port: int, file_id: str | None) -> list[dict]:
        return results if file_id else []

    monkeypatch.setattr(jobs_module, "batches", batches)
    monkeypatch.setattr(jobs_module, "_results", read)
    jobs = Jobs(random.Random(0), Tally(), Disk(tmp_path))
    jobs.expected = {"one": Expected({"a": 3, "b": 1, "c": 0}, cancelled=False)}
    checks = asyncio.run(jobs.check(0))
    assert {check.name for check in checks if not check.good} == failing


def test_what_an_idle_server_has_none_of() -> None:
    text = """# HELP jaxserve_num_requests_running sequences
jaxserve_num_requests_running{model_name="m"} 2.0
jaxserve_num_requests_waiting{model_name="m"} 0.0
jaxserve_kv_blocks{model_name="m",state="used"} 3.0
jaxserve_kv_blocks{model_name="m",state="shared"} 1.0
jaxserve_kv_blocks{model_name="m",state="cached"} 50.0
jaxserve_http_requests_open{model_name="m"} 1.0
jaxserve_tier_blocks{model_name="m",tier="disk"} 6.0
jaxserve_tier_blocks{model_name="m",tier="host"} 7.0
"""
    expected = {"running": 2.0, "waiting": 0.0, "open calls": 1.0, "blocks": 4.0, "blocks on the disk": 6.0}
    assert busy(text) == expected


def test_answers_are_whole_or_none() -> None:
    whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n2\r\nef\r\n0\r\n\r\n"
    assert parse(whole).body == b"abcdef"
    for cut in (b"", whole[:20], whole[:-9], b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc"):
        with pytest.raises(EOFError):
            parse(cut)
    assert Reply(200, {}, b'data: {"a": 1}\n\ndata: [DONE]\n\n').events() == [{"a": 1}, None]
    assert json.loads(message("POST", "/x", {"b": 2}).partition(b"\r\n\r\n")[2]) == {"b": 2}


@pytest.mark.slow
def test_a_short_soak(compilation_cache: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Half a minute of abuse, a full disk and one kill -9: every check holds."""
    status = command.main(["--quick", "--seed", "3", f"--serve=--compilation-cache-dir={compilation_cache}"])
    assert status == 0, capfd.readouterr()
