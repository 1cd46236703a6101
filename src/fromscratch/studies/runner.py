"""Trains the runs of a study: each in a process of its own, on one device, by the ``train`` command.

Any number of runners may share the work, on one machine or on several with a shared disk: a file lock admits one of
them to each run. A runner that is killed leaves nothing behind: its runs notice, save, and end, and the next runner
resumes them.
"""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fromscratch.config.loading import to_toml
from fromscratch.errors import EXIT_DIVERGED, EXIT_DONE, EXIT_STOPPED
from fromscratch.processes.parent import WATCHED_VARIABLE
from fromscratch.processes.stopping import StopRequest
from fromscratch.runs.overview import observed_status
from fromscratch.runs.states import RunState
from fromscratch.studies.agenda import Agenda
from fromscratch.studies.definition import Study
from fromscratch.studies.early_stopping import hopeless
from fromscratch.studies.jobs import Job, StudyFolder
from fromscratch.studies.prices import Prices

POLL_SECONDS = 0.2
CLAIM_SECONDS = 2.0
"""Time until a run that another process had claimed is looked at again."""
EARLY_STOP_SECONDS = 5.0
WORDS = {EXIT_DONE: "done", EXIT_DIVERGED: "diverged", EXIT_STOPPED: "stopped"}
"""What the exit code of a run means that did not fail."""


@dataclass
class Outcome:
    """How the session of a runner went."""

    has_failed: bool = False
    """Whether a run ended with an error; a diverged run is none."""
    is_interrupted: bool = False
    refusal: str = ""
    """Why no further run began: the limit of dollars; empty if all that could be trained was."""


def train_command(study: Study, job: Job) -> list[str]:
    """The arguments of ``fromscratch`` that train one run; anyone may type them."""
    overrides = [*job.arm.overrides, f"train.seed={job.seed}"]
    sets = [word for item in overrides for word in ("--set", item)]
    return ["train", str(study.baseline), "--name", job.name, "--runs-dir", str(job.run.path.parent), *sets]


def tune_command(study: Study, job: Job) -> list[str]:
    """The arguments of ``fromscratch`` that tune the final model of a run, with the seed of the run."""
    assert job.tuned is not None
    base = f"{job.run.path.resolve()}@latest"
    sets = ["--set", f"train.start_from={to_toml(base)}", "--set", f"train.seed={job.seed}"]
    return ["train", str(study.tune), "--name", job.tuned.name, "--runs-dir", str(job.tuned.path.parent), *sets]


def commands_of(study: Study, job: Job) -> list[list[str]]:
    """The commands that are left of a run, one after the other."""
    if job.tuned is None:
        return [train_command(study, job)]
    is_trained = job.run.exists() and observed_status(job.run).state == RunState.DONE
    return [*([] if is_trained else [train_command(study, job)]), tune_command(study, job)]


def log_of(folder: StudyFolder, job: Job) -> Path:
    """The file with what the ``train`` command of a run prints."""
    return folder.path / "logs" / f"{job.name}.log"


class Devices(Protocol):
    """Where the runs of a study are trained."""

    @property
    def num_slots(self) -> int:
        """Runs at once."""

    def submit(self, folder: StudyFolder, job: Job) -> "Future[int | None]":
        """Starts a run; the future is its exit code, or None where another runner has it."""

    def stop(self, folder: StudyFolder) -> None:
        """Asks all runs to save and stop."""

    def close(self, folder: StudyFolder) -> None:
        """Called when no run is left."""


class LocalDevices:
    """Trains as many runs at once as there are slots; each slot is the environment of its runs."""

    def __init__(self, slots: Sequence[dict[str, str]], options: Sequence[str] = ()) -> None:
        self._free = list(slots)
        self._pool = ThreadPoolExecutor(len(slots))
        self._options = list(options)
        self._stop = threading.Event()
        self.num_slots = len(slots)

    def submit(self, folder: StudyFolder, job: Job) -> "Future[int | None]":
        """Starts a run; the future is its exit code, or None where another runner has it."""
        slot = self._free.pop()

        def train() -> int | None:
            try:
                is_alone = self.num_slots == 1
                return run_claimed(folder, job, self._options, slot, self._stop.is_set, shows_progress=is_alone)
            finally:
                self._free.append(slot)

        return self._pool.submit(train)

    def stop(self, folder: StudyFolder) -> None:
        """Asks all runs to save and stop."""
        self._stop.set()

    def close(self, folder: StudyFolder) -> None:
        """Ends the threads that wait for runs."""
        self._pool.shutdown()


def run_claimed(
    folder: StudyFolder,
    job: Job,
    options: Sequence[str],
    environment: dict[str, str],
    stop: Callable[[], bool],
    *,
    shows_progress: bool = False,
) -> int | None:
    """Claims a run and trains it in a new process, and tunes it in another; None where another process has it.

    A stop request is passed on as SIGTERM, once.

    Args:
        options: further arguments of the commands.
    """
    with folder.claimed(job) as claim:
        if claim is None:
            return None
        log = log_of(folder, job)
        log.parent.mkdir(exist_ok=True)
        code = EXIT_DONE
        with log.open("ab") as file:
            for command in commands_of(folder.study, job):
                if stop():
                    return EXIT_STOPPED
                process = subprocess.Popen(
                    [sys.executable, "-m", "fromscratch", *command, *options],
                    env={**os.environ, **environment, WATCHED_VARIABLE: str(os.getpid())},
                    stdout=file,
                    stderr=None if shows_progress else file,
                    pass_fds=[claim],
                    start_new_session=True,  # Ctrl-C reaches the runner alone, which passes it on once
                )
                code = _wait(process, folder, job, stop)
                if code != EXIT_DONE:
                    break
        return code


def _wait(process: "subprocess.Popen[bytes]", folder: StudyFolder, job: Job, stop: Callable[[], bool]) -> int:
    asked, looked_at = False, time.monotonic()
    while True:
        try:
            code = process.wait(POLL_SECONDS)
            return EXIT_STOPPED if asked and code == -signal.SIGTERM else code  # asked before it could listen
        except subprocess.TimeoutExpired:
            pass
        if not asked and time.monotonic() - looked_at > EARLY_STOP_SECONDS:
            looked_at = time.monotonic()
            if reason := hopeless(folder, job):
                folder.append("stopped_early", {"run": job.name, "reason": reason})
                asked = True
                process.send_signal(signal.SIGTERM)
        if stop() and not asked:
            asked = True
            process.send_signal(signal.SIGTERM)


def run_study(
    folder: StudyFolder, devices: Devices, agenda: Agenda | None = None, *, on_event: Callable[[str], None]
) -> Outcome:
    """Trains what is missing, until all runs have ended, the limit is reached, or a signal asks to stop.

    Args:
        agenda: says which run is next, and whether the dollars suffice for it; by default there is no limit.
        on_event: gets a line for each run that begins or ends.
    """
    agenda = agenda or Agenda(folder, Prices(folder))
    outcome, tried, claimed_at = Outcome(), set[str](), dict[str, float]()
    running: dict[Future[int | None], Job] = {}
    stop = StopRequest()
    with stop.listening():
        while True:
            untried: list[Job] = []
            while len(running) < devices.num_slots and not stop():
                untried = agenda.waiting(running.values(), without=tried)
                now = time.monotonic()
                free = [job for job in untried if now - claimed_at.get(job.name, -math.inf) > CLAIM_SECONDS]
                if not free:
                    break
                outcome.refusal = agenda.refusal(free[0], running.values())
                if outcome.refusal:
                    untried = []
                    break
                tried.add(free[0].name)
                on_event(f"{free[0].name}: {'resumes' if free[0].run.exists() else 'begins'}")
                running[devices.submit(folder, free[0])] = free[0]
            if not running and untried:
                time.sleep(POLL_SECONDS)  # another process holds a claim, and begins or ends just now
                continue
            if not running:
                break
            if stop() and not outcome.is_interrupted:
                outcome.is_interrupted = True
                on_event("saving and stopping; the same command continues")
                devices.stop(folder)
            _collect(folder, running, tried, claimed_at, outcome, on_event)
    devices.close(folder)
    outcome.is_interrupted = stop()
    if outcome.refusal:
        on_event(outcome.refusal)
    return outcome


def _collect(
    folder: StudyFolder,
    running: "dict[Future[int | None], Job]",
    tried: set[str],
    claimed_at: dict[str, float],
    outcome: Outcome,
    on_event: Callable[[str], None],
) -> None:
    """Waits an instant for runs to end."""
    ended, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
    for future in ended:
        job, code = running.pop(future), future.result()
        if code is None:
            tried.discard(job.name)
            claimed_at[job.name] = time.monotonic()
        else:
            on_event(f"{job.name}: {WORDS.get(code, f'failed with exit code {code}; see {log_of(folder, job)}')}")
            outcome.has_failed |= code not in WORDS


def local_slots(device: str | None, jobs: int | None) -> list[dict[str, str]]:
    """The environments of the runs that this machine trains at once: one per GPU, or ``jobs`` that share the CPU."""
    import torch

    if device is None and torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        devices = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
        return [{"CUDA_VISIBLE_DEVICES": name} for name in devices[:jobs]]
    threads = max(1, (os.cpu_count() or 1) // (jobs or 1))
    return [{"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))} for _ in range(jobs or 1)]
