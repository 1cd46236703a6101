"""Stamps: texts that differ when what a page shows has changed on the disk; and results that are kept meanwhile.

A stamp is computed from sizes and times of files, so that watching costs no reading.
"""

import hashlib
import math
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from starlette.exceptions import HTTPException

from fromscratch.dashboard.site import JUDGED_FILES, Site, run_in
from fromscratch.runs.directory import RunDirectory

WATCHED = (".", "status.json", "metrics.jsonl", "events.jsonl", "cost.json", "run.toml", "checkpoints", "evaluations")
STUDY_FILES = ("study.json", "definition.json")
MAX_REMEMBERED, MAX_BODIES = 2_000, 100
MIN_INTERVAL_SECONDS = 2.0
SECONDS_PER_PAGE = 0.2
"""Each open page makes the updates of all rarer, so that many pages cost the training no more than a few."""
Result = TypeVar("Result")


def stamp_of(run: RunDirectory) -> str:
    """A text that differs when the run has changed, or a process has begun or ceased to train it."""
    folder = str(run.path)
    return "\n".join([folder, *(_file_stamp(f"{folder}/{name}") for name in WATCHED), _holder(run)])


def stamp_of_all(runs: Iterable[RunDirectory], others: Iterable[Path] = ()) -> str:
    """One stamp of several runs and files."""
    parts = [*(stamp_of(run) for run in runs), *map(_file_stamp, others)]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def stamp_at(site: Site, name: str) -> str:
    """The stamp of a run, a study or a results folder, or of everything (an empty name)."""
    if not name:
        judged = (path / file for path in site.judged() for file in JUDGED_FILES)
        return stamp_of_all(site.runs(), [site.root, *judged])
    try:
        folder = site.folder(name)
    except HTTPException:
        return "gone"
    if (run := run_in(folder)).exists():
        return stamp_of_all([run])
    return stamp_of_all(site.runs_of_study(folder), [folder / file for file in (*STUDY_FILES, *JUDGED_FILES)])


def _file_stamp(path: str | Path) -> str:
    try:
        found = os.lstat(path)
    except OSError:
        return "-"
    return f"{found.st_mtime_ns} {found.st_size} {found.st_ino}"


def _holder(run: RunDirectory) -> str:
    return run.holder() if run.lock.is_file() else ""


class _Lock:
    """A lock that may be referred to weakly."""

    def __init__(self) -> None:
        self.inner = threading.Lock()


class Memory:
    """Remembers results by key, each with the stamp of what it was computed from."""

    def __init__(self, max_remembered: int = MAX_REMEMBERED) -> None:
        self._max_remembered = max_remembered
        self._found: dict[Any, tuple[str, Any]] = {}
        self._lock = threading.Lock()
        self._computing: WeakValueDictionary[Any, _Lock] = WeakValueDictionary()

    def known(self, key: Any, stamp: str) -> Any:
        """The result for a key and a stamp; None if there is none."""
        found = self._found.get(key)
        return found[1] if found is not None and found[0] == stamp else None

    def get(self, key: Any, stamp: str, compute: Callable[[], Result]) -> Result:
        """The result of ``compute``, or the one that it had for the same key and stamp.

        Threads that ask for the same at once wait for one computation.
        """
        if (known := self.known(key, stamp)) is not None:
            return known
        with self._lock:
            computing = self._computing.setdefault(key, _Lock())
        with computing.inner:
            if (known := self.known(key, stamp)) is not None:
                return known
            result = compute()
            with self._lock:
                self._found.pop(key, None)
                self._found[key] = (stamp, result)
                while len(self._found) > self._max_remembered:
                    del self._found[next(iter(self._found))]
            return result


class Watch:
    """Computes stamps for all pages. The more pages are open, the older a stamp may be."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._found: dict[str, tuple[float, str]] = {}
        self.open_pages = 0

    @property
    def interval_seconds(self) -> float:
        """Seconds between two looks of a page at the disk."""
        return max(MIN_INTERVAL_SECONDS, SECONDS_PER_PAGE * self.open_pages)

    def known(self, name: str) -> str | None:
        """A stamp that is recent enough; None if there is none. Where no page is open, none is."""
        at, found = self._found.get(name, (-math.inf, ""))
        return found if monotonic() - at < 0.5 * SECONDS_PER_PAGE * self.open_pages else None

    def stamp(self, name: str) -> str:
        """The stamp of a run, of a study, or of everything (an empty name)."""
        found = self.known(name)
        if found is None:
            found = stamp_at(self._site, name)
            now = monotonic()
            self._found = {key: one for key, one in self._found.items() if now - one[0] < 60}
            self._found[name] = (now, found)
        return found


class Bodies:
    """What requests are answered with, made again only when it has changed; all open pages share it."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._watch = watch_of(site)
        self._memory = Memory(MAX_BODIES)

    async def get(self, key: tuple[Any, ...], names: Sequence[str], make: Callable[[], bytes]) -> bytes:
        """What ``make`` returns about runs, studies or folders; it runs in a thread. Raises what it raises.

        Args:
            key: what else the body depends on.
            names: of all that it shows; an empty name means everything.
        """
        whole_key = (*key, *names)

        def find() -> bytes:
            return self._memory.get(whole_key, " ".join(map(self._watch.stamp, names)), make)

        stamps = [self._watch.known(name) for name in names]
        body = None if None in stamps else self._memory.known(whole_key, " ".join(filter(None, stamps)))
        return await self._site.in_thread(find) if body is None else body


@cache
def watch_of(site: Site) -> Watch:
    """The watch that all pages of a site share."""
    return Watch(site)


@cache
def bodies_of(site: Site) -> Bodies:
    """The bodies that all pages of a site share."""
    return Bodies(site)
