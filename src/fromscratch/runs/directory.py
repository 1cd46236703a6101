"""A run directory: its name, its paths, its records, and the lock that keeps two trainers apart."""

import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import tomli_w

from fromscratch.errors import DataError, UsageError
from fromscratch.files import read_json_object, to_strict_json, write_atomically
from fromscratch.runs.records import RecordWriter, read_records

LOCK_ATTEMPTS, LOCK_WAIT_SECONDS = 4, 0.05
NAME_RULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class RunDirectory:
    """``runs/<name>/`` and what is in it. Creating the object touches nothing on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "run.toml"
        self.machine = path / "machine.json"
        self.status = path / "status.json"
        self.metrics = path / "metrics.jsonl"
        self.events = path / "events.jsonl"
        self.checkpoints = path / "checkpoints"
        self.evaluations = path / "evaluations"
        self.charts = path / "charts"
        self.samples = path / "samples.txt"
        self.tokenizer = path / "tokenizer"
        self.lock = path / "lock"

    @property
    def name(self) -> str:
        return self.path.name

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.config.is_file()

    def create(self) -> None:
        """Makes the folder and proves that it can be written.

        Raises:
            UsageError: it cannot be created or written.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".probe-{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise UsageError(f"run directory {self.path}: cannot be written ({error.strerror})") from error

    def write_config(self, plain: dict[str, Any]) -> None:
        """Saves the resolved config as TOML."""
        write_atomically(self.config, tomli_w.dumps(plain))

    def write_status(self, state: str, *, step: int, num_steps: int, reason: str = "") -> None:
        """``state`` is one of running, done, stopped, failed, diverged."""
        facts = {"state": state, "step": step, "num_steps": num_steps, "reason": reason, "pid": os.getpid()}
        write_atomically(self.status, to_strict_json(facts, indent=1))

    def read_status(self) -> dict[str, Any]:
        """The last status written. Raises DataError where there is none."""
        return read_json_object(self.status)

    def write_machine(self, facts: dict[str, Any]) -> None:
        """Records what the run runs on."""
        write_atomically(self.machine, to_strict_json(facts, indent=1))

    def update_machine(self, **facts: Any) -> None:
        """Changes some of what is recorded of the machine: a resume makes the choices that stand there."""
        self.write_machine({**(read_json_object(self.machine) if self.machine.is_file() else {}), **facts})

    def log_event(self, event: str, **facts: Any) -> None:
        """Appends one event, on the disk at once."""
        with RecordWriter(self.events) as writer:
            writer.write({"event": event, **facts})

    def forget_after(self, step: int) -> None:
        """Drops the records of steps that a resumed run will do again."""
        kept = [record for record in read_records(self.metrics) if not _is_after(record, step)]
        write_atomically(self.metrics, "".join(to_strict_json(record) + "\n" for record in kept))

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Holds the run for this process; yields whether a dead trainer's lock was taken over.

        Raises:
            UsageError: another live process is training here.
        """
        with self.lock.open("a+") as file:
            holder = self._take_lock(file)
            file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            try:
                yield bool(holder)
            finally:
                file.truncate(0)

    def holder(self) -> str:
        """Who is training here now; nothing where nobody is. Changes nothing on the disk."""
        try:
            with self.lock.open(encoding="utf-8", errors="replace") as file:
                named = _content(file)
                if not named:
                    return ""
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go of when the file is closed
        except BlockingIOError:
            return named
        except OSError:  # no lock file, or a disk without locks: nobody can be told
            return ""
        return ""

    def _take_lock(self, file: TextIO) -> str:
        """Locks the file, empties it, and returns the dead holder it named, if any."""
        try:
            _lock_soon(file)
        except BlockingIOError:
            holder = _content(file) or "another process"
            raise UsageError(
                f"run {self.path}: already being trained by {holder}; "
                "wait for it, stop it, or train under another --name"
            ) from None
        except OSError as error:
            raise UsageError(f"run {self.path}: its folder has no working file locks ({error.strerror})") from error
        holder = _content(file)
        file.truncate(0)
        return holder


def _lock_soon(file: TextIO) -> None:
    """Locks for writing; whoever only looks whether a run is being trained lets go within an instant."""
    for _ in range(LOCK_ATTEMPTS - 1):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_WAIT_SECONDS)
    return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _content(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip()


def _is_after(record: dict[str, Any], step: int) -> bool:
    """Whether a record tells of a later step; one whose step is no number tells of none."""
    found = record.get("step")
    return isinstance(found, int | float) and found > step


def check_run_name(name: str) -> str:
    """The name, if it can be a folder's on every system. Raises UsageError."""
    if not NAME_RULE.fullmatch(name):
        raise UsageError(
            f"run name {name[:120]!r}: must be 1 to 100 letters, digits, dots, dashes or underscores, "
            "beginning with a letter or digit"
        )
    return name


def find_run(path: Path) -> RunDirectory:
    """An existing run. Raises DataError when the folder is none."""
    run = RunDirectory(path)
    if not run.exists():
        raise DataError(f"{path}: not a run directory (it has no run.toml)")
    return run
