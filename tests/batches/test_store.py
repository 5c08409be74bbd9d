"""The store: what is committed stays, what is not leaves no trace, and its bounds."""

import io
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bench.soak.disk import run_inside
from jaxserve.batches.errors import InUse, NoSuchBatch, NoSuchFile, StoreFull
from jaxserve.batches.store import Store
from jaxserve.core.errors import ConfigError, InvalidRequest, QueueFull

MANY = 1 << 30


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "store", MANY)
    yield opened
    opened.close()


def add(store: Store, text: str = "x\n", tenant: str = "a", now: float = 100.0) -> str:
    return store.add_file(io.BytesIO(text.encode()), tenant, "in.jsonl", "batch", now).id


def begin(store: Store, file_id: str, now: float = 100.0) -> str:
    return store.add_batch("a", "/v1/completions", file_id, "24h", 86400, {"k": "v"}, now).id


def test_files_belong_to_a_tenant(store: Store) -> None:
    mine, other = add(store), add(store, "yy\n", "b")
    assert store.path(mine).read_text() == "x\n" and store.file(mine, "a").bytes == 2
    assert [f.id for f in store.files("b", None, None, 10)[0]] == [other]
    for wrong in (lambda: store.file(other, "a"), lambda: store.delete_file(other, "a"), lambda: begin(store, other)):
        with pytest.raises(NoSuchFile):
            wrong()
    store.delete_file(mine, "a")
    assert not store.path(mine).exists() and store.files("a", None, None, 10) == ([], False)


def test_pages(store: Store) -> None:
    ids = [add(store) for _ in range(5)][::-1]
    page, more = store.files("a", "batch", None, 2)
    assert [f.id for f in page] == ids[:2] and more
    page, more = store.files("a", "batch", ids[1], 3)
    assert [f.id for f in page] == ids[2:] and not more
    assert store.files("a", "other", None, 3) == ([], False)
    theirs = add(store, tenant="b")
    for after in ("file-none", theirs):
        with pytest.raises(InvalidRequest, match="give an id of this list"):
            store.files("a", None, after, 3)


def test_a_batchs_life(store: Store) -> None:
    file_id = add(store)
    batch_id = begin(store, file_id)
    with pytest.raises(InUse, match="cancel it"):
        store.delete_file(file_id, "a")
    with pytest.raises(NoSuchBatch):
        store.batch(batch_id, "b")
    store.move(batch_id, "in_progress", 101, total=3)
    store.add_results([(batch_id, 2, True, "third"), (batch_id, 0, False, "first")])
    store.add_results([(batch_id, 2, True, "third again"), (batch_id, 1, True, "second")])
    counts = store.batch(batch_id)
    assert (counts.total, counts.completed, counts.failed) == (3, 2, 1) and store.done_lines(batch_id) == {0, 1, 2}
    store.move(batch_id, "finalizing", 102, ends_as="completed")
    ended = store.finalize(batch_id, "completed", 103)
    assert ended.status == "completed" and ended.body()["completed_at"] == 103 and ended.times["in_progress_at"] == 101
    assert store.path(ended.output_file_id).read_text() == "second\nthird\n"
    assert store.path(ended.error_file_id).read_text() == "first\n"
    assert store.unfinished() == [] and store.done_lines(batch_id) == set()
    assert store.move(batch_id, "in_progress", 104).status == "completed", "what has ended stays ended"
    assert store.finalize(batch_id, "cancelled", 105) == ended
    store.delete_file(file_id, "a")


def test_open_batches_are_bounded_by_tenant(store: Store) -> None:
    mine, theirs = add(store), add(store, tenant="b")
    first = begin(store, mine)
    asked = ("/v1/completions", "24h", 86400, None, 100.0, 2)
    again = lambda tenant, file_id: store.add_batch(tenant, asked[0], file_id, *asked[1:])  # noqa: E731
    again("a", mine)
    with pytest.raises(QueueFull, match=r"2 batches wait and the bound is 2 \(batch_max_open\)"):
        again("a", mine)
    again("b", theirs)
    store.finalize(first, "cancelled", 101)
    again("a", mine)


def test_what_has_no_lines_has_no_file(store: Store) -> None:
    batch_id = begin(store, add(store))
    ended = store.finalize(batch_id, "cancelled", 101)
    assert ended.output_file_id is None and ended.error_file_id is None


def test_a_cancellation_is_not_overrun(store: Store) -> None:
    batch_id = begin(store, add(store))
    store.move(batch_id, "cancelling", 101)
    assert store.move(batch_id, "in_progress", 102).status == "cancelling"


def test_one_process_at_a_time(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another server"):
        Store(tmp_path / "store", MANY)
    with pytest.raises(ConfigError, match="cannot be used"):
        Store("/proc/nowhere", MANY)


def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    store = Store(tmp_path, MANY)
    file_id = add(store)
    batch_id = begin(store, file_id)
    store.add_results([(batch_id, 0, True, "done")])
    (tmp_path / "files" / ".half").write_text("an upload that was cut")
    (tmp_path / "files" / "file-orphan").write_text("an output whose batch did not end")
    store.close()
    again = Store(tmp_path, MANY)
    assert again.done_lines(batch_id) == {0} and again.unfinished()[0].metadata == {"k": "v"}
    assert {path.name for path in (tmp_path / "files").iterdir()} == {file_id}
    again.close()


def test_a_bound_on_bytes(tmp_path: Path) -> None:
    with closing(Store(tmp_path, 1 << 20)) as store:
        add(store, "x" * 600_000)
        with pytest.raises(StoreFull, match="batch_store_bytes"):
            add(store, "x" * 600_000)
        assert len(list((tmp_path / "files").iterdir())) == 1
        batch_id = begin(store, add(store))
        with pytest.raises(StoreFull, match="full"):
            store.add_results([(batch_id, i, True, "y" * 50_000) for i in range(100)])
        assert store.done_lines(batch_id) == set() and store.batch(batch_id).completed == 0, "all or none"
        store.add_results([(batch_id, 0, True, "small")])


def test_uploads_of_one_tenant_leave_the_others_their_bytes(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "s", 400_000, ["a", "b"])) as store:
        for _ in range(2):
            store.add_file(io.BytesIO(b"x" * 100_000), "a", "in", "batch", 1.0)
        with pytest.raises(StoreFull):
            store.add_file(io.BytesIO(b"x" * 100_000), "a", "in", "batch", 1.0)
        store.add_file(io.BytesIO(b"x" * 100_000), "b", "in", "batch", 1.0)


def test_a_disk_that_is_really_full(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Everything of it is in `on_a_full_disk.py`, which mounts one."""
    status = run_inside("tests.batches.on_a_full_disk", [str(tmp_path)])
    if status is None:
        pytest.skip("no small filesystem can be mounted here (unshare --mount)")
    assert status == 0, capfd.readouterr()
