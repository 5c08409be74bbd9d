"""The SQLite database of a batch store: its tables, its one connection, and its transactions.

What a transaction wrote is on the disk when it has ended (a write-ahead log, synced). A transaction that is begun
inside another one is a part of it.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxserve.batches.contents import full_is_known
from jaxserve.core.errors import InvalidRequest

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


class Database:
    """Thread-safe. `path` is made if it is not there; `max_bytes`: past it a transaction raises StoreFull.

    Raises:
      sqlite3.Error: it cannot be opened.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._mutex = threading.RLock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        try:
            self._connection.execute("pragma journal_mode = wal")
            self._connection.execute("pragma synchronous = full")
            self._connection.execute(f"pragma max_page_count = {max(64, max_bytes // _PAGE_BYTES)}")
            self._connection.executescript(_SCHEMA)
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        with self._mutex:
            self._connection.close()

    def one(self, query: str, *values: Any) -> sqlite3.Row | None:
        """The first row of a query's answer."""
        with self._mutex:
            return self._connection.execute(query, values).fetchone()

    def all(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._mutex:
            return self._connection.execute(query, values).fetchall()

    def page(
        self,
        table: str,
        tenant: str,
        after: str | None,
        limit: int,
        equal: dict[str, str],
        oldest_first: bool = False,
    ) -> tuple[list[sqlite3.Row], bool]:
        """A tenant's rows from the one after `after`, newest first unless told otherwise; and whether there are more.

        `equal`: columns that hold a value. Raises InvalidRequest for an `after` that is none of the tenant's ids.
        """
        beyond, order = (">", "asc") if oldest_first else ("<", "desc")
        equal = {"tenant": tenant} | equal
        where = " and ".join(f"{column} = ?" for column in equal)
        values: list[Any] = list(equal.values())
        with self._mutex:
            if after is not None:
                row = self.one(f"select rowid from {table} where id = ? and tenant = ?", after, tenant)
                if row is None:
                    raise InvalidRequest(f"after: there is no {after[:80]!r} here: give an id of this list", "after")
                where, values = f"{where} and rowid {beyond} ?", [*values, row["rowid"]]
            rows = self.all(f"select * from {table} where {where} order by rowid {order} limit ?", *values, limit + 1)
        return rows[:limit], len(rows) > limit

    @property
    def num_bytes(self) -> int:
        """Of the file, as far as it is in use."""
        with self._mutex:
            (pages,) = self._connection.execute("pragma page_count").fetchone()
        return pages * _PAGE_BYTES

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is executed inside, or none of it. Raises StoreFull."""
        with self._mutex:
            if self._connection.in_transaction:  # part of a larger one
                yield self._connection
                return
            with full_is_known():
                self._connection.execute("begin immediate")
                try:
                    yield self._connection
                    self._connection.execute("commit")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("rollback")
                    raise
