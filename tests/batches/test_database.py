"""A transaction is whole or nothing, also when it is made of smaller ones."""

import threading
from pathlib import Path

import pytest

from jaxserve.batches.database import Database
from jaxserve.batches.errors import StoreFull

INSERT = "insert into results values ('b', ?, 1, ?)"


@pytest.fixture
def database(tmp_path: Path):
    opened = Database(tmp_path / "batches.db", 1 << 20)
    yield opened
    opened.close()


def lines(database: Database) -> list[int]:
    return [row["line"] for row in database.all("select line from results order by line")]


def test_what_is_inside_another_is_undone_with_it(database: Database) -> None:
    with database.transaction() as outer:
        outer.execute(INSERT, (1, "x"))
    with pytest.raises(ZeroDivisionError), database.transaction() as outer:
        outer.execute(INSERT, (2, "x"))
        with database.transaction() as inner:
            inner.execute(INSERT, (3, "x"))
        _ = 1 / 0
    assert lines(database) == [1]


def test_what_is_under_way_is_seen_by_no_other_thread(database: Database) -> None:
    seen: list[list[int]] = []
    other = threading.Thread(target=lambda: seen.append(lines(database)))
    with database.transaction() as inside:
        inside.execute(INSERT, (1, "x"))
        other.start()
        inside.execute(INSERT, (2, "x"))
    other.join()
    assert seen == [[1, 2]]


def test_past_its_bound_it_is_full_and_as_it_was(database: Database) -> None:
    with pytest.raises(StoreFull), database.transaction() as inside:
        for line in range(3):
            inside.execute(INSERT, (line, "x" * (1 << 19)))
    assert lines(database) == [] and database.num_bytes <= 1 << 20
    assert database.one("select count(*) as number from results")["number"] == 0
