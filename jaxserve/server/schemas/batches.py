"""`/v1/files` and `/v1/batches`."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from jaxserve.core.errors import InvalidRequest
from jaxserve.server.schemas.answers import Answer
from jaxserve.server.schemas.base import Body

_WINDOW = re.compile(r"(\d{1,6})([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST_WINDOW_S = 30 * 86400


class BatchBody(Body):
    later: ClassVar[frozenset[str]] = frozenset({"output_expires_after"})

    input_file_id: str = Field(max_length=200)
    endpoint: Literal["/v1/chat/completions", "/v1/completions"]
    completion_window: str = Field(pattern=r"^[0-9]{1,6}[smhd]$", description="24h; also other numbers of s, m, h, d")
    metadata: dict[str, Annotated[str, Field(max_length=512)]] | None = Field(None, max_length=16)

    @property
    def window_s(self) -> int:
        found = _WINDOW.fullmatch(self.completion_window)
        seconds = int(found[1]) * _UNIT_S[found[2]] if found else 0
        if not 0 < seconds <= LONGEST_WINDOW_S:
            raise InvalidRequest("completion_window must be from 1s to 30d", "completion_window")
        return seconds


class FileObject(Answer):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"]


class Listing(Answer):
    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileList(Listing):
    data: list[FileObject]


class FileDeleted(Answer):
    id: str
    object: Literal["file"]
    deleted: bool


class BatchError(Answer):
    code: str
    message: str
    param: str | None
    line: int | None


class BatchErrors(Answer):
    object: Literal["list"]
    data: list[BatchError]


class RequestCounts(Answer):
    total: int
    completed: int
    failed: int


class BatchObject(Answer):
    id: str
    object: Literal["batch"]
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    expires_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, Any] | None


class BatchList(Listing):
    data: list[BatchObject]
