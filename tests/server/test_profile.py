"""`POST /debug/profile`, and the names that a profile of the real model shows."""

import gzip
import io
import json
import re
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax.profiler
import pytest

from jaxserve.core.clock import MonotonicClock
from jaxserve.core.sampling import SamplingParams
from jaxserve.llm import LLM
from jaxserve.runtime import profile as profiler
from jaxserve.server.keys import Keys
from tests.engine.conftest import build_engine
from tests.server.conftest import Running, fake_service, llm_service, serve

ADMIN = "the-admin-key"
HEADERS = {"Authorization": f"Bearer {ADMIN}"}


def start(**settings: Any) -> Iterator[Running]:
    service = fake_service(build_engine(clock=MonotonicClock()), **settings)
    yield from serve(service, Keys({}, ADMIN))


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    yield from start()


@pytest.fixture(scope="module")
def to_a_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    yield from start(profile_dir=str(tmp_path_factory.mktemp("profiles") / "here"), max_open_requests=1)


def ask(running: Running, **body: Any) -> Any:
    return running.client.post("/debug/profile", json=body, headers=HEADERS)


def with_load(running: Running, call: Callable[[], Any]) -> Any:
    """What `call` returns while requests are served, one after the other."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(call)
        while not future.done():
            running.client.post("/generate", json={"prompt": [1, 2, 3], "max_tokens": 4})
        return future.result()


def test_it_is_closed_without_the_admin_key(running: Running) -> None:
    assert running.client.post("/debug/profile", json={}).status_code in (401, 403)


@pytest.mark.parametrize(
    ("body", "words"),
    [({"steps": 0}, "steps"), ({"steps": 1001}, "1000"), ({"timeout_s": 301}, "300"), ({"step": 3}, "known: steps")],
)
def test_it_is_bounded(running: Running, body: dict[str, Any], words: str) -> None:
    answer = ask(running, **body)
    assert answer.status_code == 400 and words in answer.json()["error"]["message"]


def test_a_zip_of_the_next_steps(running: Running) -> None:
    answer = with_load(running, lambda: ask(running, steps=5, timeout_s=60))
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/zip"
    assert int(answer.headers["x-profile-steps"]) >= 5
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    names = archive.namelist()
    (space,) = [name for name in names if name.endswith(".xplane.pb")]
    assert space.startswith("plugins/profile/"), "where XProf looks for it"
    planes = jax.profiler.ProfileData.from_serialized_xspace(archive.read(space)).planes
    assert any(plane.name == "/host:CPU" for plane in planes)
    (trace,) = [name for name in names if name.endswith("perfetto_trace.json.gz")]
    content = json.loads(gzip.decompress(archive.read(trace)))
    assert content["traceEvents"] and "metadata" not in content
    (original,) = [name for name in names if name.endswith(".trace.json.gz")]
    whole = json.loads(gzip.decompress(archive.read(original)))
    assert whole.pop("metadata") and whole == content


def test_a_folder_and_one_at_a_time_and_past_the_bound_on_requests(to_a_folder: Running) -> None:
    first: dict[str, Any] = {}
    waiting = threading.Thread(target=lambda: first.update(ask(to_a_folder, steps=3, timeout_s=120).json()))
    waiting.start()
    while not to_a_folder.engine.observers[1:]:  # the first is the metrics'
        threading.Event().wait(0.01)
    refused = ask(to_a_folder)
    assert refused.status_code == 409 and "wait for its end" in refused.json()["error"]["message"]
    with_load(to_a_folder, waiting.join)
    assert first["steps"] >= 3 and first["seconds"] > 0.0
    assert {Path(name).name for name in first["files"]} >= {"perfetto_trace.json.gz"}
    assert all((Path(first["folder"]) / name).stat().st_size for name in first["files"])
    assert not to_a_folder.engine.observers[1:]


def test_a_server_with_nothing_to_do(to_a_folder: Running) -> None:
    kept = Path(to_a_folder.app.state.server.config.profile_dir)
    before = set(kept.glob("*"))
    answer = ask(to_a_folder, timeout_s=0.05)
    assert answer.status_code == 504 and "send requests meanwhile" in answer.json()["error"]["message"]
    assert set(kept.glob("*")) == before, "what shows nothing is not kept"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for running in start(profile_dir=str(tmp_path / "file" / "folder")):
        answer = ask(running)
        assert answer.status_code == 500 and "profile_dir" in answer.json()["error"]["message"]


def test_programs_and_their_operations_have_names(llm: LLM) -> None:
    texts = {table[key].as_text() for table, key in llm.runner.programs.all()}
    modules = {text.split(",")[0].split()[1] for text in texts}
    assert {"jit_model_8d_0p", "jit_model_8d_128p", "jit_score_128", "jit_load_slot"} <= modules
    assert any(module.startswith("jit_sample_") and module.endswith("_full") for module in modules)
    (mixed,) = [text for text in texts if text.startswith("HloModule jit_model_8d_128p,")]
    last = llm.model_config.num_layers - 1
    for scope in ("lay_out", "embed", "layer_0/attention/paged_decode", "layer_0/attention/paged_prefill",
                  f"layer_{last}/attention/paged_decode", f"layer_{last}/attention/write_kv", f"layer_{last}/mlp",
                  "norm", "logits"):  # fmt: skip
        assert f"/{scope}/" in mixed, scope
    assert f"/layer_{last}/attention/paged_prefill/" not in mixed, "the last layer attends from the rows' ends only"
    assert not re.search(r"paged_(decode|prefill)/[^\"]*paged_\1", mixed), "one scope is enough"
    assert all("/sample/" in text for text in texts if text.startswith("HloModule jit_sample_"))
    assert all("/score/" in text for text in texts if text.startswith("HloModule jit_score_"))


def test_xprof_opens_it(llm: LLM, tmp_path: Path) -> None:
    """By its own parser, what it shows of a zip: steps, the host's parts, programs, and their operations by layer."""
    xprof = pytest.importorskip("xprof.convert.raw_to_tool_data", reason="xprof is missing: pip install xprof")
    for running in serve(llm_service(llm), Keys({}, ADMIN)):
        answer = with_load(running, lambda: ask(running, steps=8, timeout_s=60))  # noqa: B023
        zipfile.ZipFile(io.BytesIO(answer.content)).extractall(tmp_path)
    spaces = [str(path) for path in tmp_path.rglob("*.xplane.pb")]
    assert {"trace_viewer@", "overview_page", "graph_viewer"} <= set(xprof.xspace_to_tool_names(spaces))
    drawn, _ = xprof.xspace_to_tool_data(spaces, "trace_viewer@", {})
    names = {event.get("name", "") for event in json.loads(drawn)["traceEvents"]}
    assert {"pack", "model", "sample", "wait"} <= names
    steps = sorted(int(name.split()[1]) for name in names if re.fullmatch(r"step \d+", name))
    assert len(steps) >= 8 and steps == list(range(steps[0], steps[0] + len(steps)))
    (program,) = [p.name.removesuffix(".hlo_proto.pb") for p in tmp_path.rglob("jit_model_8d_128p(*.hlo_proto.pb")]
    asked = {"graph_viewer_options": {"module_name": program, "type": "pbtxt"}}
    shown, _ = xprof.xspace_to_tool_data(spaces, "graph_viewer", asked)
    shown = shown if isinstance(shown, str) else shown.decode()
    for scope in ("layer_0/attention/paged_decode", "layer_0/attention/paged_prefill", "layer_0/mlp", "logits"):
        assert f"/{scope}/" in shown, scope


def test_a_profile_shows_steps_by_name(llm: LLM, tmp_path: Path) -> None:
    profiler.start(tmp_path)
    try:
        llm.generate([[1, 2, 3]] * 3, SamplingParams(max_tokens=6, ignore_eos=True), use_tqdm=False)
    finally:
        profiler.stop(tmp_path)
    assert llm.runner.compilations_after_warmup == 0
    (trace,) = tmp_path.rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    named: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        named.setdefault(event.get("name", ""), []).append(event.get("args", {}))
    assert {"step", "pack", "model", "sample", "wait"} <= set(named)
    numbers = [int(args["step_num"]) for args in named["step"]]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) and len(numbers) >= 6
    assert {args["bucket"] for args in named["model"]} <= {"8d+0p", "8d+128p", "0d+128p"}
    with pytest.raises(RuntimeError, match=r"[Nn]o profile"):
        jax.profiler.stop_trace()
