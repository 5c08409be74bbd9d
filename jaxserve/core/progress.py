"""A progress bar where one is wanted; without it, tqdm is not loaded, and need not be there."""

from typing import Any


class _Silent:
    def __enter__(self) -> "_Silent":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: int = 1) -> None:
        pass

    def set_postfix(self, **_: Any) -> None:
        pass


def progress_bar(total: int, desc: str, unit: str, *, show: bool) -> Any:
    """A context manager with tqdm's `update` and `set_postfix`."""
    if not show:
        return _Silent()
    from tqdm import tqdm

    return tqdm(total=total, desc=desc, unit=unit)
