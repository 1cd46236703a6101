"""Loads the next item in a background thread while the device computes."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Key = TypeVar("Key")
Loaded = TypeVar("Loaded")


class Prefetcher(Generic[Key, Loaded]):
    """Loads one item ahead, in one thread. Any other item is loaded when it is asked for."""

    def __init__(self, load: Callable[[Key], Loaded]) -> None:
        self._load = load
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._next: tuple[Key, Future[Loaded]] | None = None

    def take(self, key: Key, then: Key | None) -> Loaded:
        """Returns the item of ``key`` and begins to load that of ``then``. Raises the errors of loading."""
        expected, self._next = self._next, None
        value = expected[1].result() if expected is not None and expected[0] == key else self._load(key)
        if then is not None:
            self._next = (then, self._thread.submit(self._load, then))
        return value
