"""What a store keeps of files and batches, in the OpenAI API's words."""

from dataclasses import dataclass
from typing import Any

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
TIMES = (
    "in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredFile:
    id: str
    tenant: str
    filename: str
    purpose: str
    bytes: int
    created_at: int

    def body(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


@dataclass(frozen=True, slots=True)
class Batch:
    """`status`: validating -> in_progress -> finalizing -> completed; or failed, expired, cancelling -> cancelled.

    A batch in `finalizing` remembers in `ends_as` what it will be.
    """

    id: str
    tenant: str
    endpoint: str
    input_file_id: str
    completion_window: str
    status: str
    ends_as: str | None
    created_at: int
    expires_at: int
    total: int
    completed: int
    failed: int
    output_file_id: str | None
    error_file_id: str | None
    errors: list[dict[str, Any]]
    metadata: dict[str, str] | None
    times: dict[str, int]

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    def body(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            **{name: self.times.get(name) for name in TIMES},
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "metadata": self.metadata,
        }
