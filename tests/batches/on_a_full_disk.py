"""What the store does on a disk that is really full; run by test_store.py in a mount namespace: `... FOLDER`."""

import asyncio
import io
import shutil
import subprocess
import sys
from pathlib import Path

from bench.soak.disk import Disk
from jaxserve.batches.errors import StoreFull
from jaxserve.batches.store import Store
from jaxserve.core.errors import ConfigError

BIG = "y" * 20_000


async def main(folder: Path) -> None:
    disk = Disk(folder)
    assert disk.can_fill
    store = Store(folder / "batches", 1 << 30)
    file = store.add_file(io.BytesIO(b"x\n" * 50), "a", "in.jsonl", "batch", 0.0)
    batch = store.add_batch("a", "/v1/completions", file.id, "24h", 86400, None, 0.0)
    store.move(batch.id, "in_progress", 0.0, total=50)
    store.add_results([(batch.id, i, True, BIG) for i in range(20)])
    filling = asyncio.create_task(disk.fill(600.0))
    while shutil.disk_usage(folder).free >= 4096:
        await asyncio.sleep(0.01)

    assert refused(lambda: store.add_file(io.BytesIO(b"z" * 500_000), "a", "more.jsonl", "batch", 0.0))
    assert refused(lambda: store.add_results([(batch.id, i, True, BIG) for i in range(20, 50)] * 10))
    assert refused(lambda: store.finalize(batch.id, "completed", 0.0))
    assert store.done_lines(batch.id) == set(range(20)) and store.batch(batch.id).completed == 20
    assert store.batch(batch.id).status == "in_progress"
    assert [path.name for path in (folder / "batches" / "files").iterdir()] == [file.id], "nothing half is left"

    store.close()
    (folder / "batches" / "batches.db-shm").unlink(missing_ok=True)  # as after a crash and a restart of the machine
    try:
        Store(folder / "batches", 1 << 30).close()
    except ConfigError as error:
        assert "is its disk full?" in str(error)

    filling.cancel()
    await asyncio.gather(filling, return_exceptions=True)
    store = Store(folder / "batches", 1 << 30)
    store.add_results([(batch.id, i, True, BIG) for i in range(50)])
    ended = store.finalize(batch.id, "completed", 0.0)
    assert ended.completed == 50 and ended.output_file_id is not None
    assert store.path(ended.output_file_id).read_text() == (BIG + "\n") * 50
    store.close()
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def refused(call) -> bool:
    try:
        call()
    except StoreFull as error:
        return "make room on its disk" in str(error)
    return False


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
