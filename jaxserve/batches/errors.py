"""What can be wrong with a file or a batch."""

from jaxserve.core.errors import InvalidRequest, JaxserveError


class NoSuchFile(InvalidRequest):
    def __init__(self, file_id: str, param: str = "file_id") -> None:
        super().__init__(f"there is no file {file_id!r}: upload it with POST /v1/files", param)


class NoSuchBatch(InvalidRequest):
    def __init__(self, batch_id: str) -> None:
        super().__init__(f"there is no batch {batch_id!r}", "batch_id")


class InUse(InvalidRequest):
    """Not while a batch needs it."""


class StoreFull(JaxserveError):
    """No room on the disk, or the bound of the store is reached (HTTP 507)."""
