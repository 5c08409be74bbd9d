"""Files and batches in one folder: contents as files, everything else in SQLite (WAL).

    DIR/lock           held while a process uses the folder
    DIR/batches.db     files, batches, and the results of lines of batches that have not ended
    DIR/files/ID       a file's content

A result is finished when its row is committed, and a row is keyed by (batch, line): whatever moment the process dies
at, no finished line is lost and none can be there twice. A batch ends in two moves that can each be repeated: its
results are written to files whose names follow from the batch's, then one transaction names the files, ends the batch
and drops the rows. What a crash leaves of half-written contents is swept when the folder is opened.
"""

import fcntl
import json
import sqlite3
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from jaxserve.batches.contents import Contents
from jaxserve.batches.database import Database
from jaxserve.batches.errors import InUse, NoSuchBatch, NoSuchFile
from jaxserve.batches.records import ENDED, TIMES, Batch, StoredFile
from jaxserve.core.errors import ConfigError, QueueFull
from jaxserve.core.places import Places

_ENDED = ", ".join(f"'{status}'" for status in sorted(ENDED))
"""As SQL lists them."""


class Store:
    """Thread-safe; every method is one transaction at most. Times are seconds since the epoch, given by the caller.

    Args:
      max_bytes: of contents and database together; past it StoreFull.
      tenants: for whose uploads a part of these bytes is kept (`core.places`).

    Raises:
      ConfigError: the folder cannot be used, or another process uses it.
    """

    def __init__(self, folder: str | Path, max_bytes: int, tenants: Iterable[str] = ()) -> None:
        self._folder = Path(folder).expanduser()
        self._places = Places(max_bytes, dict.fromkeys(tenants, 1.0))
        try:
            self._contents = Contents(self._folder / "files")
            self._lock = open(self._folder / "lock", "w")  # noqa: SIM115
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ConfigError(f"batch_dir {folder}: another server uses it; give each a folder of its own") from None
        except OSError as error:
            raise ConfigError(f"batch_dir {folder}: cannot be used ({error.strerror})") from error
        try:
            with ExitStack() as on_failure:
                on_failure.callback(self._lock.close)
                self._db = Database(self._folder / "batches.db", max_bytes)
                on_failure.callback(self._db.close)
                self._contents.sweep({row["id"] for row in self._db.all("select id from files")})
                on_failure.pop_all()
        except sqlite3.Error as error:  # no room for the write-ahead log; no database
            raise ConfigError(f"batch_dir {folder}: cannot be used ({error}): is its disk full?") from error

    def close(self) -> None:
        self._db.close()
        self._lock.close()

    # --- files ------------------------------------------------------------------------------------------------

    def add_file(self, source: BinaryIO, tenant: str, filename: str, purpose: str, now: float) -> StoredFile:
        """Keep a copy of what `source` holds. Raises StoreFull."""
        file_id = f"file-{uuid.uuid4().hex}"
        size = self._contents.write(file_id, iter(lambda: source.read(1 << 20), b""), self._bytes_left(tenant))
        stored = StoredFile(file_id, tenant, filename, purpose, size, int(now))
        try:
            with self._db.transaction() as db:
                _insert_file(db, stored)
        except BaseException:
            self._contents.remove(file_id)
            raise
        return stored

    def file(self, file_id: str, tenant: str, param: str = "file_id") -> StoredFile:
        """Raises NoSuchFile, also for another tenant's."""
        row = self._db.one("select * from files where id = ? and tenant = ?", file_id, tenant)
        if row is None:
            raise NoSuchFile(file_id, param)
        return StoredFile(**row)

    def files(
        self, tenant: str, purpose: str | None, after: str | None, limit: int, oldest_first: bool = False
    ) -> tuple[list[StoredFile], bool]:
        """From the one after `after`, newest first unless told otherwise; and whether there are more."""
        equal = {} if purpose is None else {"purpose": purpose}
        rows, more = self._db.page("files", tenant, after, limit, equal, oldest_first)
        return [StoredFile(**row) for row in rows], more

    def path(self, file_id: str) -> Path:
        return self._contents.path(file_id)

    def delete_file(self, file_id: str, tenant: str) -> None:
        """Raises NoSuchFile; InUse while a batch that has not ended reads it."""
        self.file(file_id, tenant)
        with self._db.transaction() as db:
            used = db.execute(
                f"select id from batches where input_file_id = ? and status not in ({_ENDED})", (file_id,)
            ).fetchone()
            if used is not None:
                raise InUse(f"batch {used['id']} reads this file: cancel it first", "file_id")
            db.execute("delete from files where id = ?", (file_id,))
        self._contents.remove(file_id)

    # --- batches ----------------------------------------------------------------------------------------------

    def add_batch(
        self, tenant: str, endpoint: str, input_file_id: str, window: str, window_s: float,
        metadata: dict[str, str] | None, now: float, most_open: int | None = None,
    ) -> Batch:  # fmt: skip
        """`most_open`: batches of the tenant that may be open. Raises NoSuchFile, StoreFull, QueueFull."""
        self.file(input_file_id, tenant, "input_file_id")
        batch_id = f"batch_{uuid.uuid4().hex}"
        with self._db.transaction() as db:
            (num_open,) = db.execute(
                f"select count(*) from batches where tenant = ? and status not in ({_ENDED})", (tenant,)
            ).fetchone()
            if most_open is not None and num_open >= most_open:
                raise QueueFull(num_open, most_open, "batch_max_open", retry_after_s=60.0, what="batches")
            db.execute(
                "insert into batches (id, tenant, endpoint, input_file_id, completion_window, status, created_at,"
                " expires_at, metadata) values (?, ?, ?, ?, ?, 'validating', ?, ?, ?)",
                (batch_id, tenant, endpoint, input_file_id, window, int(now), int(now + window_s),
                 None if metadata is None else json.dumps(metadata)),
            )  # fmt: skip
        return self.batch(batch_id)

    def batch(self, batch_id: str, tenant: str | None = None) -> Batch:
        """Raises NoSuchBatch, also for another tenant's. `tenant` None: whoever's."""
        row = self._db.one("select * from batches where id = ?", batch_id)
        if row is None or (tenant is not None and row["tenant"] != tenant):
            raise NoSuchBatch(batch_id)
        return _batch(row)

    def batches(self, tenant: str, after: str | None, limit: int) -> tuple[list[Batch], bool]:
        rows, more = self._db.page("batches", tenant, after, limit, {})
        return [_batch(row) for row in rows], more

    def unfinished(self) -> list[Batch]:
        """Those that must end first, first."""
        rows = self._db.all(f"select * from batches where status not in ({_ENDED}) order by expires_at, rowid")
        return [_batch(row) for row in rows]

    def move(self, batch_id: str, status: str, now: float, **columns: Any) -> Batch:
        """Give a batch its next status, unless it has ended or is being cancelled; stamps the time."""
        with self._db.transaction() as db:
            batch = self.batch(batch_id)
            if batch.ended or (batch.status == "cancelling" and status == "in_progress"):
                return batch
            stamp = f"{status}_at"
            times = dict(batch.times)
            if stamp in TIMES:
                times.setdefault(stamp, int(now))
            values = columns | {"status": status, "times": json.dumps(times)}
            names = ", ".join(f"{name} = ?" for name in values)
            db.execute(f"update batches set {names} where id = ?", (*values.values(), batch_id))
        return self.batch(batch_id)

    # --- results ----------------------------------------------------------------------------------------------

    def add_results(self, results: Iterable[tuple[str, int, bool, str]]) -> None:
        """(batch, line, good, content) of lines that are done. A line that is known already stays as it is.

        Raises StoreFull; then none of them is kept.
        """
        with self._db.transaction() as db:
            for batch_id, line, good, content in results:
                done = db.execute(
                    "insert into results values (?, ?, ?, ?) on conflict do nothing", (batch_id, line, good, content)
                )
                if done.rowcount:
                    column = "completed" if good else "failed"
                    db.execute(f"update batches set {column} = {column} + 1 where id = ?", (batch_id,))

    def done_lines(self, batch_id: str) -> set[int]:
        return {row["line"] for row in self._db.all("select line from results where batch = ?", batch_id)}

    def finalize(self, batch_id: str, status: str, now: float) -> Batch:
        """Write the output and error files and end the batch as `status`. May be repeated after a crash.

        Raises StoreFull; then nothing has changed.
        """
        batch = self.batch(batch_id)
        if batch.ended:
            return batch
        columns: dict[str, Any] = {}
        files: list[StoredFile] = []
        for good, column, suffix in ((1, "output_file_id", "output"), (0, "error_file_id", "error")):
            file_id = f"file-{batch_id.removeprefix('batch_')}-{suffix}"
            size = self._contents.write(file_id, self._results_of(batch_id, good), self._bytes_left())
            if size:
                name = f"{batch_id}_{suffix}.jsonl"
                files.append(StoredFile(file_id, batch.tenant, name, "batch_output", size, int(now)))
                columns[column] = file_id
            else:
                self._contents.remove(file_id)
        with self._db.transaction() as db:
            for stored in files:
                _insert_file(db, stored)
            ended = self.move(batch_id, status, now, ends_as=None, **columns)
            db.execute("delete from results where batch = ?", (batch_id,))
        return ended

    def _results_of(self, batch_id: str, good: int) -> Iterator[bytes]:
        """The results of a kind, in the order of the input's lines; read in pages, so that memory stays flat."""
        line = -1
        while True:
            rows = self._db.all(
                "select line, content from results where batch = ? and good = ? and line > ? order by line limit 500",
                batch_id, good, line,
            )  # fmt: skip
            if not rows:
                return
            yield "".join(row["content"] + "\n" for row in rows).encode()
            line = rows[-1]["line"]

    def _bytes_left(self, tenant: str | None = None) -> int:
        """For an upload of a tenant; None: for what batches write, which may have what is kept for others."""
        held = Counter({row["tenant"]: row["bytes"] for row in self._db.all(
            "select tenant, sum(bytes) as bytes from files group by tenant"
        )})  # fmt: skip
        total = held.total() + self._db.num_bytes
        if tenant is None:
            return self._places.most - total
        return min(self._places.left(tenant, held.__getitem__, total), self._places.most - total)


def _insert_file(db: sqlite3.Connection, stored: StoredFile) -> None:
    db.execute(
        "insert or replace into files values (?, ?, ?, ?, ?, ?)",
        (stored.id, stored.tenant, stored.filename, stored.purpose, stored.bytes, stored.created_at),
    )


def _batch(row: sqlite3.Row) -> Batch:
    values = dict(row)
    values["errors"], values["times"] = json.loads(values["errors"]), json.loads(values["times"])
    values["metadata"] = None if values["metadata"] is None else json.loads(values["metadata"])
    return Batch(**values)
