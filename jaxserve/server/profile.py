"""`POST /debug/profile`: a profiler's trace of the next steps, which XProf and Perfetto open. For the admin key only.

Bounded in steps and in time, and one at a time. The engine goes on meanwhile; only steps that were planned after the
profiler had started are counted.
"""

import asyncio
import shutil
import tempfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import pydantic
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from jaxserve.core.errors import ConfigError, EngineStopped
from jaxserve.core.step_record import StepRecord
from jaxserve.engine.engine import Engine
from jaxserve.engine.loop import EngineLoop
from jaxserve.server.body import read_body
from jaxserve.server.errors import NothingToProfile, ProfileRunning
from jaxserve.server.schemas.base import Body
from jaxserve.server.service import Service

MAX_STEPS = 1000
MAX_S = 300.0
PATIENCE_S = 10.0
"""A step under way may take as long; the question is put after it."""


class ProfileBody(Body):
    steps: int = pydantic.Field(20, ge=1, le=MAX_STEPS)
    timeout_s: float = pydantic.Field(30.0, gt=0.0, le=MAX_S, strict=False)
    """However few steps have run by then."""


class StepCount:
    """An observer that tells an event loop when so many steps have run that were planned after `since_s`."""

    def __init__(self, steps: int) -> None:
        self.reached = asyncio.Event()
        self.count, self._steps = 0, steps
        self._since_s = float("inf")
        self._loop = asyncio.get_running_loop()

    def begin(self, engine: Engine) -> None:
        self._since_s = engine.now
        engine.observers.append(self)

    def end(self, engine: Engine) -> None:
        engine.observers.remove(self)

    def observe(self, record: StepRecord) -> None:
        if record.step is not None and record.step.planned_s >= self._since_s:
            self.count += 1
            if self.count == self._steps:
                self._loop.call_soon_threadsafe(self.reached.set)


async def profile(request: Request) -> Response:
    service: Service = request.app.state.service
    raw = await read_body(request)
    body = ProfileBody.parse(raw or b"{}")
    kept = service.config.profile_dir
    folder = Path(tempfile.mkdtemp(prefix="jaxserve-profile-")) if kept is None else _named_folder(kept)
    try:
        began_s = time.monotonic()
        steps = await _take(service.loop, body, folder)
        seconds = time.monotonic() - began_s
        if kept is not None:
            files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
            return JSONResponse({"folder": str(folder), "files": files, "steps": steps, "seconds": seconds})
        packed = await asyncio.to_thread(_pack, folder)
    except BaseException:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        raise
    gone = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
    headers = {"x-profile-steps": str(steps)}
    return FileResponse(packed, media_type="application/zip", filename=f"{folder.name}.zip", headers=headers,
                        background=gone)  # fmt: skip


async def _take(loop: EngineLoop, body: ProfileBody, folder: Path) -> int:
    """The number of steps in the trace that was written to `folder`."""
    from jaxserve.runtime import profile as profiler  # with JAX, which is loaded after the doors have opened

    try:
        await asyncio.to_thread(profiler.start, folder)
    except RuntimeError as error:
        raise ProfileRunning("a profile is being taken: wait for its end") from error
    try:
        steps = StepCount(body.steps)
        await loop.ask(steps.begin, PATIENCE_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(body.timeout_s):
                await steps.reached.wait()
        with suppress(TimeoutError, EngineStopped):  # a step that hangs: then that is what the trace shows
            await loop.ask(steps.end, PATIENCE_S)
    finally:
        await asyncio.to_thread(profiler.stop, folder)
    if not steps.count:
        raise NothingToProfile(f"no step ended within {body.timeout_s:g} s: send requests meanwhile, or wait longer")
    return steps.count


def _named_folder(parent: str) -> Path:
    try:
        place = Path(parent).expanduser()
        place.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=place))
    except OSError as error:
        raise ConfigError(f"profile_dir: {parent} cannot be written ({error.strerror}): give another folder") from error


def _pack(folder: Path) -> Path:
    packed = folder / "profile.zip"
    files = [path for path in folder.rglob("*") if path.is_file()]
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            archive.write(path, path.relative_to(folder))
    return packed
