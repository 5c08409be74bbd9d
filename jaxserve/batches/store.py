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
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from jaxserve.batches.contents import Contents, full_is_known
from jaxserve.batches.errors import InUse, NoSuchBatch, NoSuchFile
from jaxserve.batches.records import ENDED, TIMES, Batch, StoredFile
from jaxserve.core.errors import ConfigError, InvalidRequest, QueueFull

_SCHEMA = """
create table if not exists files (
    id text primary key, tenant text not null, filename text not null, purpose text not null,
    bytes integer not null, created_at integer not null);
create table if not exists batches (
    id text primary key, tenant text not null, endpoint text not null, input_file_id text not null,
    completion_window text not null, status text not null, ends_as text, created_at integer not null,
    expires_at integer not null, total integer not null default 0, completed integer not null default 0,
    failed integer not null default 0, output_file_id text, error_file_id text, errors text not null default '[]',
    metadata text, times text not null default '{}');
create table if not exists results (
    batch text not null, line integer not null, good integer not null, content text not null,
    primary key (batch, line)) without rowid;
"""
_PAGE_BYTES = 4096


class Store:
    """Thread-safe; every method is one transaction at most. Times are seconds since the epoch, given by the caller.

    Args:
      max_bytes: of contents and database together; past it StoreFull.

    Raises:
      ConfigError: the folder cannot be used, or another process uses it.
    """

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        self._folder = Path(folder).expanduser()
        self._max_bytes = max_bytes
        self._mutex = threading.RLock()
        try:
            self._contents = Contents(self._folder / "files")
            self._lock = open(self._folder / "lock", "w")  # noqa: SIM115
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ConfigError(f"batch_dir {folder}: another server uses it; give each a folder of its own") from None
        except OSError as error:
            raise ConfigError(f"batch_dir {folder}: cannot be used ({error.strerror})") from error
        self._db = sqlite3.connect(self._folder / "batches.db", check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        try:
            self._set_up()
        except sqlite3.Error as error:  # no room for the write-ahead log; no database
            self.close()
            raise ConfigError(f"batch_dir {folder}: cannot be used ({error}): is its disk full?") from error

    def _set_up(self) -> None:
        self._db.execute("pragma journal_mode = wal")
        self._db.execute("pragma synchronous = full")
        self._db.execute(f"pragma max_page_count = {max(64, self._max_bytes // _PAGE_BYTES)}")
        self._db.executescript(_SCHEMA)
        self._contents.sweep({row["id"] for row in self._db.execute("select id from files")})

    def close(self) -> None:
        with self._mutex:
            self._db.close()
            self._lock.close()

    # --- files ------------------------------------------------------------------------------------------------

    def add_file(self, source: BinaryIO, tenant: str, filename: str, purpose: str, now: float) -> StoredFile:
        """Keep a copy of what `source` holds. Raises StoreFull."""
        file_id = f"file-{uuid.uuid4().hex}"
        size = self._contents.write(file_id, iter(lambda: source.read(1 << 20), b""), self._bytes_left())
        stored = StoredFile(file_id, tenant, filename, purpose, size, int(now))
        try:
            with self._transaction() as db:
                _insert_file(db, stored)
        except BaseException:
            self._contents.remove(file_id)
            raise
        return stored

    def file(self, file_id: str, tenant: str, param: str = "file_id") -> StoredFile:
        """Raises NoSuchFile, also for another tenant's."""
        with self._mutex:
            row = self._db.execute("select * from files where id = ? and tenant = ?", (file_id, tenant)).fetchone()
        if row is None:
            raise NoSuchFile(file_id, param)
        return StoredFile(**row)

    def files(
        self, tenant: str, purpose: str | None, after: str | None, limit: int, oldest_first: bool = False
    ) -> tuple[list[StoredFile], bool]:
        """From the one after `after`, newest first unless told otherwise; and whether there are more."""
        equal = {} if purpose is None else {"purpose": purpose}
        rows, more = self._page("files", tenant, after, limit, equal, oldest_first)
        return [StoredFile(**row) for row in rows], more

    def path(self, file_id: str) -> Path:
        return self._contents.path(file_id)

    def delete_file(self, file_id: str, tenant: str) -> None:
        """Raises NoSuchFile; InUse while a batch that has not ended reads it."""
        self.file(file_id, tenant)
        with self._transaction() as db:
            marks = ", ".join("?" * len(ENDED))
            used = db.execute(
                f"select id from batches where input_file_id = ? and status not in ({marks})", (file_id, *ENDED)
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
        with self._transaction() as db:
            marks = ", ".join("?" * len(ENDED))
            (num_open,) = db.execute(
                f"select count(*) from batches where tenant = ? and status not in ({marks})", (tenant, *ENDED)
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
        with self._mutex:
            row = self._db.execute("select * from batches where id = ?", (batch_id,)).fetchone()
        if row is None or (tenant is not None and row["tenant"] != tenant):
            raise NoSuchBatch(batch_id)
        return _batch(row)

    def batches(self, tenant: str, after: str | None, limit: int) -> tuple[list[Batch], bool]:
        rows, more = self._page("batches", tenant, after, limit, {})
        return [_batch(row) for row in rows], more

    def unfinished(self) -> list[Batch]:
        """Those that must end first, first."""
        marks = ", ".join("?" * len(ENDED))
        with self._mutex:
            rows = self._db.execute(
                f"select * from batches where status not in ({marks}) order by expires_at, rowid", tuple(ENDED)
            ).fetchall()
        return [_batch(row) for row in rows]

    def move(self, batch_id: str, status: str, now: float, **columns: Any) -> Batch:
        """Give a batch its next status, unless it has ended or is being cancelled; stamps the time."""
        with self._transaction() as db:
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
        with self._transaction() as db:
            for batch_id, line, good, content in results:
                done = db.execute(
                    "insert into results values (?, ?, ?, ?) on conflict do nothing", (batch_id, line, good, content)
                )
                if done.rowcount:
                    column = "completed" if good else "failed"
                    db.execute(f"update batches set {column} = {column} + 1 where id = ?", (batch_id,))

    def done_lines(self, batch_id: str) -> set[int]:
        with self._mutex:
            rows = self._db.execute("select line from results where batch = ?", (batch_id,)).fetchall()
        return {row["line"] for row in rows}

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
        with self._transaction() as db:
            for stored in files:
                _insert_file(db, stored)
            ended = self.move(batch_id, status, now, ends_as=None, **columns)
            db.execute("delete from results where batch = ?", (batch_id,))
        return ended

    def _results_of(self, batch_id: str, good: int) -> Iterator[bytes]:
        """The results of a kind, in the order of the input's lines; read in pages, so that memory stays flat."""
        line = -1
        while True:
            with self._mutex:
                rows = self._db.execute(
                    "select line, content from results where batch = ? and good = ? and line > ?"
                    " order by line limit 500",
                    (batch_id, good, line),
                ).fetchall()
            if not rows:
                return
            yield "".join(row["content"] + "\n" for row in rows).encode()
            line = rows[-1]["line"]

    # --- inside -----------------------------------------------------------------------------------------------

    def _bytes_left(self) -> int:
        with self._mutex:
            (contents,) = self._db.execute("select coalesce(sum(bytes), 0) from files").fetchone()
            (pages,) = self._db.execute("pragma page_count").fetchone()
        return self._max_bytes - contents - pages * _PAGE_BYTES

    def _page(
        self,
        table: str,
        tenant: str,
        after: str | None,
        limit: int,
        equal: dict[str, str],
        oldest_first: bool = False,
    ) -> tuple[list[sqlite3.Row], bool]:
        """Rows of a tenant. Raises InvalidRequest for an `after` that is none of its ids."""
        beyond, order = (">", "asc") if oldest_first else ("<", "desc")
        equal = {"tenant": tenant} | equal
        where = " and ".join(f"{column} = ?" for column in equal)
        values: list[Any] = list(equal.values())
        with self._mutex:
            if after is not None:
                found = self._db.execute(f"select rowid from {table} where id = ? and tenant = ?", (after, tenant))
                if (row := found.fetchone()) is None:
                    raise InvalidRequest(f"after: there is no {after[:80]!r} here: give an id of this list", "after")
                where, values = f"{where} and rowid {beyond} ?", [*values, row["rowid"]]
            rows = self._db.execute(
                f"select * from {table} where {where} order by rowid {order} limit ?", (*values, limit + 1)
            ).fetchall()
        return rows[:limit], len(rows) > limit

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._mutex:
            if self._db.in_transaction:  # part of a larger one
                yield self._db
                return
            with full_is_known():
                self._db.execute("begin immediate")
                try:
                    yield self._db
                    self._db.execute("commit")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("rollback")
                    raise


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
