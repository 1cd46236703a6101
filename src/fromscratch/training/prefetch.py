"""Loads what comes next while the device is busy with what is there."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Key = TypeVar("Key")
Loaded = TypeVar("Loaded")


class Prefetcher(Generic[Key, Loaded]):
    """One thing ahead, in one thread; whoever asks for another thing just waits for it."""

    def __init__(self, load: Callable[[Key], Loaded]) -> None:
        self._load = load
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._next: tuple[Key, Future[Loaded]] | None = None

    def take(self, key: Key, then: Key | None) -> Loaded:
        """What belongs to ``key``; begins to load what belongs to ``then``. Errors of loading come out here."""
        expected, self._next = self._next, None
        value = expected[1].result() if expected is not None and expected[0] == key else self._load(key)
        if then is not None:
            self._next = (then, self._thread.submit(self._load, then))
        return value
