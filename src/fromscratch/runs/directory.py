"""A run directory: its name, paths, records and status, and the lock that admits one training process."""

import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import tomli_w

from fromscratch.errors import DataError, UsageError
from fromscratch.files import read_json_object, shortened, to_strict_json, write_atomically
from fromscratch.runs.records import RecordWriter, now_as_text, read_records, to_count, to_float
from fromscratch.runs.retention import LEFTOVER_NAME
from fromscratch.runs.states import Event, RunState

LOCK_ATTEMPTS, LOCK_WAIT_SECONDS = 4, 0.05
CONFIG_NAME = re.compile(r"step-(\d{8})\.toml")
STORES = "stores"
"""Key of ``machine.json``: where the stores of the run are on this machine, by key of the run file."""
NAME_RULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


CLASSIFICATION = "classification.json"
"""File with the measures of a tuned classifier."""
RECORDS = ("run.toml", "configs", "machine.json", "status.json", "metrics.jsonl", "events.jsonl", "cost.json", "lock")
RESULTS = ("checkpoints", "tokenizer", "evaluations", "charts", "samples.txt", "trace.json", "stacks", "split")
RUN_FILES = frozenset(RECORDS + RESULTS)
"""Everything in the folder of a run."""


@dataclass(frozen=True)
class RunStatus:
    """The content of ``status.json``; a number is None if the file holds no valid one."""

    state: RunState
    step: int | None
    num_steps: int | None
    reason: str = ""
    pid: int | None = None
    """Process that wrote the file."""


class RunDirectory:
    """Paths and files of ``runs/<name>/``. Creating the object does not touch the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "run.toml"
        self.configs = path / "configs"
        self.machine = path / "machine.json"
        self.status = path / "status.json"
        self.metrics = path / "metrics.jsonl"
        self.events = path / "events.jsonl"
        self.checkpoints = path / "checkpoints"
        self.evaluations = path / "evaluations"
        self.charts = path / "charts"
        self.cost = path / "cost.json"
        self.samples = path / "samples.txt"
        self.tokenizer = path / "tokenizer"
        self.lock = path / "lock"

    @property
    def name(self) -> str:
        return self.path.name

    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return self.config.is_file()

    def create(self) -> None:
        """Creates the folder and checks that it is writable.

        Raises:
            UsageError: it is not writable, or holds no run but something else.
        """
        try:
            if others := self._others():
                raise UsageError(
                    f"run directory {self.path}: holds no run, but {shortened(others)}; give another --name"
                )
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".probe-{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise UsageError(f"run directory {self.path}: cannot be written ({error.strerror})") from error

    def _others(self) -> list[str]:
        """Lists what is in the folder, if it holds no run, besides what a start that failed leaves there."""
        if self.exists() or not self.path.is_dir():
            return []
        own = {path.name for path in vars(self).values()} - {self.name}
        found = sorted(path.name for path in self.path.iterdir() if path.name not in own)
        return [name for name in found if not LEFTOVER_NAME.fullmatch(name)]

    def write_config(self, plain: dict[str, Any]) -> None:
        """Saves the resolved config as TOML."""
        write_atomically(self.config, tomli_w.dumps(plain))

    def record_config(self, plain: dict[str, Any], *, after_step: int) -> None:
        """Saves the config of the steps after ``after_step``, in ``configs`` and as ``run.toml``.

        Drops the configs of later sessions, as ``forget_after`` drops their metrics: a resume repeats those steps.
        """
        text = tomli_w.dumps(plain)
        self.configs.mkdir(exist_ok=True)
        if after_step and not self.configs_by_step():  # an earlier version wrote run.toml only
            write_atomically(self._config_path(self._config_since()), self.config.read_text("utf-8"))
        earlier = []
        for begin, path in self.configs_by_step():
            if begin < after_step:
                earlier.append(path)
            else:
                path.unlink()
        if not earlier or earlier[-1].read_text("utf-8") != text:
            write_atomically(self._config_path(after_step), text)
        if self.config.read_text("utf-8") != text:
            write_atomically(self.config, text)

    def configs_by_step(self) -> list[tuple[int, Path]]:
        """Lists the files in ``configs``, each with the step after which its config applies; oldest first."""
        matches = ((CONFIG_NAME.fullmatch(path.name), path) for path in self.configs.glob("step-*.toml"))
        return sorted((int(match[1]), path) for match, path in matches if match)

    def config_at(self, step: int) -> Path:
        """Returns the file with the config that took a step; ``run.toml`` if ``configs`` has none for it."""
        found = (path for begin, path in reversed(self.configs_by_step()) if begin < max(step, 1))
        return next(found, self.config)

    def _config_path(self, after_step: int) -> Path:
        return self.configs / f"step-{after_step:08}.toml"

    def _config_since(self) -> int:
        """Finds the step after which ``run.toml`` applies in a run without ``configs``: its last allowed change."""
        since, is_changed = 0, False
        for record in read_records(self.events):
            is_changed = is_changed or record.get("event") == Event.CONFIG_CHANGED
            if is_changed and record.get("event") == Event.RESUMED:
                since, is_changed = to_count(record.get("step")) or 0, False
        return since

    def write_status(self, state: str, *, step: int, num_steps: int, reason: str = "") -> None:
        """Replaces the status; ``state`` is a ``RunState`` or its value."""
        status = RunStatus(RunState(state), step, num_steps, reason, os.getpid())
        write_atomically(self.status, to_strict_json(asdict(status), indent=1))

    def read_status(self) -> RunStatus:
        """Reads the status: a file without a state means running. Raises DataError if there is no JSON object."""
        values = read_json_object(self.status)
        state = values.get("state", RunState.RUNNING)
        return RunStatus(
            state=RunState(state) if state in tuple(RunState) else RunState.UNKNOWN,
            step=to_count(values.get("step")),
            num_steps=to_count(values.get("num_steps")),
            reason=str(values.get("reason") or ""),
            pid=to_count(values.get("pid")),
        )

    def write_machine(self, facts: dict[str, Any]) -> None:
        """Records the hardware, the software versions and the choices made for this machine."""
        write_atomically(self.machine, to_strict_json(facts, indent=1))

    def update_machine(self, **facts: Any) -> None:
        """Changes some values of ``machine.json``; a resume makes the choices recorded there."""
        self.write_machine({**(read_json_object(self.machine) if self.machine.is_file() else {}), **facts})

    def log_event(self, event: Event, *, at: str | None = None, **facts: Any) -> None:
        """Appends an ``Event`` and waits until it is on the disk.

        Args:
            at: when it happened, ISO 8601 in UTC; None is now.
        """
        with RecordWriter(self.events) as writer:
            writer.write({"event": event, "at": at or now_as_text(), **facts})

    def forget_after(self, step: int) -> None:
        """Drops the metrics of later steps, which a resumed run repeats; keeps lines without a step."""
        kept = [record for record in read_records(self.metrics) if (to_float(record.get("step")) or 0) <= step]
        write_atomically(self.metrics, "".join(to_strict_json(record) + "\n" for record in kept))

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Locks the run for this process; yields whether the last holder died without unlocking it.

        Raises:
            UsageError: another process is training the run.
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
        """Names the process that is training the run; empty if there is none. Writes nothing."""
        try:
            with self.lock.open(encoding="utf-8", errors="replace") as file:
                if named := _content(file):
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # released when the file is closed
        except BlockingIOError:
            return named
        except OSError:
            pass  # no lock file, or a disk without locks
        return ""

    def _take_lock(self, file: TextIO) -> str:
        """Locks and empties the file; returns the holder that it named, which has died, or nothing."""
        try:
            _lock_with_retries(file)
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


def _lock_with_retries(file: TextIO) -> None:
    """Locks for writing; retries, because ``holder`` takes a shared lock for an instant."""
    for _ in range(LOCK_ATTEMPTS - 1):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_WAIT_SECONDS)
    return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _content(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip()


def check_run_name(name: str) -> str:
    """Returns the name if every system allows it for a folder. Raises UsageError."""
    if not NAME_RULE.fullmatch(name):
        raise UsageError(
            f"run name {name[:120]!r}: must be 1 to 100 letters, digits, dots, dashes or underscores, "
            "beginning with a letter or digit; give another with --name"
        )
    return name


def find_run(path: Path) -> RunDirectory:
    """Opens an existing run. Raises DataError if the folder holds none."""
    run = RunDirectory(path)
    if not run.exists():
        raise DataError(f"{path}: not a run directory (it has no run.toml)")
    return run
