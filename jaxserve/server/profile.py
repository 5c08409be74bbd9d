"""`POST /debug/profile`: a profiler's trace of the next steps, which XProf and Perfetto open. For the admin key only.

Bounded in steps and in time, and one at a time. The engine goes on meanwhile; only steps that were planned after the
profiler had started are counted.
"""

import asyncio
import shutil
import tempfile
import time
import zipfile
from pathlib import Path

import pydantic
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from jaxserve.core.errors import ConfigError
from jaxserve.server.body import read_body
from jaxserve.server.errors import NothingToProfile
from jaxserve.server.schemas.base import Body
from jaxserve.server.service import Service

MAX_STEPS = 1000
MAX_S = 300.0


class ProfileBody(Body):
    steps: int = pydantic.Field(20, ge=1, le=MAX_STEPS)
    timeout_s: float = pydantic.Field(30.0, gt=0.0, le=MAX_S, strict=False)
    """However few steps have run by then."""


async def profile(request: Request) -> Response:
    service: Service = request.app.state.service
    raw = await read_body(request)
    body = ProfileBody.parse(raw or b"{}")
    kept = service.config.profile_dir
    folder = Path(tempfile.mkdtemp(prefix="jaxserve-profile-")) if kept is None else _named_folder(kept)
    try:
        began_s = time.monotonic()
        steps = await service.client.profile(folder, body.steps, body.timeout_s)
        seconds = time.monotonic() - began_s
        if not steps:
            waited = f"no step ended within {body.timeout_s:g} s"
            raise NothingToProfile(f"{waited}: send requests meanwhile, or wait longer")
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
