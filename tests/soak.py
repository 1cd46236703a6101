"""A run on two processes that is killed a hundred times, and must end like one that never was.

    python -m tests.soak [--kills 100] [--seed 1] [--steps 1000] [--folder DIR]

Sessions are killed by SIGKILL and SIGTERM at random moments: while they start, in steps, inside
saves, evaluations and deletions; between sessions bits are flipped in checkpoint files. Most sessions
are forked from this process, which has loaded everything (so that a hundred starts take minutes, not
an hour); every tenth is ``fromscratch train --processes 2`` from nothing. At the end weights, optimiser
state, progress and metrics (timings aside) must be those of an untouched run, bit for bit, and no
restart may have begun before its newest valid checkpoint.
"""

import argparse
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fromscratch.cli import main as command_line
from fromscratch.formats.checkpoints import read_state
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from fromscratch.runs.retention import checkpoints_in, damage_of, newest_valid, step_of
from tests.small import SMALL_RUN, write_run_file

EVERY = 10  # steps between checkpoints, and between evaluations
PROCESSES = 2
PATIENCE_SECONDS = 120.0
POLL_SECONDS = 0.002
PLACES = ("start-up", "step", "save", "evaluation")
SIGNALS = ("SIGKILL all", "SIGKILL one", "SIGTERM", "SIGTERM twice")


@dataclass(frozen=True)
class Kill:
    """One session and how it ended."""

    signal: str
    where: str
    resumed_from: int | None
    """None where it was killed before it had begun."""
    repeated_steps: int
    """Steps on the record that the next session must do again."""
    checkpoints_lost: int
    """To bits flipped after it."""
    seconds_to_first_step: float | None


class Session:
    """The processes of one session, and what can be seen of them from outside."""

    def __init__(self, folder: Path, name: str, *, from_nothing: bool) -> None:
        self.run = RunDirectory(folder / "runs" / name)
        self._resumed_from: int | None = None
        self._counted = 0, 0
        self.events_before = count_lines(self.run.events)
        self.began_at = time.monotonic()
        self.from_nothing = from_nothing
        arguments = ["train", "small.toml", "--name", name, "--device", "cpu", "--quiet"]
        log = (folder / f"{name}.log").open("ab")
        if from_nothing:
            command = [sys.executable, "-m", "fromscratch", *arguments, "--processes", str(PROCESSES)]
            environment = {**os.environ, "FROMSCRATCH_SOAK": str(folder)}
            self.launcher = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
            self._mark, self._pids = f"FROMSCRATCH_SOAK={folder}".encode(), [self.launcher.pid]
        else:
            port = free_port()
            self._pids = [fork_rank(rank, port, folder, arguments, log.fileno()) for rank in range(PROCESSES)]
        log.close()

    def pids(self) -> list[int]:
        """The processes that are there now; of a launched session the launcher comes first."""
        if not self.from_nothing:
            return self._pids
        return [*self._pids, *(pid for pid in marked(self._mark) if pid not in self._pids)]

    def send(self, number: signal.Signals, pids: list[int]) -> None:
        """Signals processes, some of which may have ended."""
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def is_over(self) -> bool:
        """Whether the session has ended by itself."""
        if self.from_nothing:
            return self.launcher.poll() is not None
        return all(ended(pid) for pid in self._pids)

    def wait(self, seconds: float) -> bool:
        """Waits for the end of all processes; whether they ended in time. What remains is killed."""
        deadline = time.monotonic() + seconds
        while not self.is_over() and time.monotonic() < deadline:
            time.sleep(0.01)
        in_time = self.is_over()
        self.send(signal.SIGKILL, [pid for pid in self.pids() if not self._reaped(pid)])
        while not self.is_over() or len(self.pids()) > len(self._pids):
            time.sleep(0.01)
        return in_time

    def _reaped(self, pid: int) -> bool:
        if self.from_nothing and pid == self.launcher.pid:
            return self.launcher.poll() is not None
        return not self.from_nothing and ended(pid)

    @property
    def steps_done(self) -> int:
        """Steps that this session has put on the record since it resumed."""
        resumed_from = self.resumed_from
        return 0 if resumed_from is None else max(0, self.records() - resumed_from)

    @property
    def resumed_from(self) -> int | None:
        """The step at which the session began; None before it has."""
        if self._resumed_from is None:
            events = list(read_records(self.run.events))[self.events_before :]
            begun = (e["step"] for e in events if e.get("event") in ("started", "resumed"))
            self._resumed_from = next(begun, None)
        return self._resumed_from

    def records(self) -> int:
        """Lines of the metrics; they are counted only where the file has changed."""
        size = self.run.metrics.stat().st_size if self.run.metrics.is_file() else 0
        if size != self._counted[0]:
            self._counted = size, count_lines(self.run.metrics)
        return self._counted[1]

    def where(self) -> str:
        """What the session is doing, by what lies on the disk."""
        folder = self.run.checkpoints
        if folder.is_dir() and any(folder.glob(".step-*.tmp-*")):
            return "save"
        if any(not (path / "manifest.json").exists() for path in checkpoints_in(folder)):
            return "retention"
        if self.steps_done == 0:
            return "start-up"
        step = self.records()
        events = list(read_records(self.run.events))[self.events_before :]
        evaluated = {e.get("step") for e in events if e.get("event") == "evaluation"}
        return "evaluation" if step % EVERY == 0 and step not in evaluated else "step"


_ENDED: dict[int, int] = {}


def ended(pid: int) -> bool:
    """Whether a child has ended; it is reaped."""
    if pid not in _ENDED:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            _ENDED[pid] = os.waitstatus_to_exitcode(status)
    return pid in _ENDED


def fork_rank(rank: int, port: int, folder: Path, arguments: list[str], log: int) -> int:
    """Starts one process of a run as torchrun would, without loading everything again."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(folder)
        facts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in facts.items()}, MASTER_ADDR="127.0.0.1")
        sys.argv = ["fromscratch", *arguments]
        command_line.main()
        os._exit(0)
    except SystemExit as error:
        sys.stderr.flush()
        os._exit(error.code if isinstance(error.code, int) else 1)
    except BaseException:
        os._exit(1)


def free_port() -> int:
    """A TCP port that nobody uses."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def marked(mark: bytes) -> list[int]:
    """Processes that carry a mark in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def count_lines(path: Path) -> int:
    """Whole lines of a file; 0 where there is none."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def wait_until(session: Session, happened: Callable[[], bool]) -> None:
    """Watches a session until something happened, or it ended."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened() and not session.is_over():
        if time.monotonic() > deadline:
            raise SystemExit(f"a session did nothing for {PATIENCE_SECONDS:.0f} seconds; see its log")
        time.sleep(POLL_SECONDS)


def await_place(session: Session, place: str, rng: random.Random, start_up_seconds: float) -> float | None:
    """Waits until the session is where it shall be killed; returns the seconds to its first step, if it got there."""
    if place == "start-up":
        time.sleep(rng.uniform(0, start_up_seconds))
        return None
    wait_until(session, lambda: session.steps_done > 0)
    first = time.monotonic() - session.began_at
    target = rng.randint(0, EVERY)
    if place == "step":
        wait_until(session, lambda: session.steps_done >= target)
        time.sleep(rng.uniform(0, 0.05))
    elif place == "save":
        wait_until(session, lambda: any(session.run.checkpoints.glob(".step-*.tmp-*")))
        time.sleep(rng.uniform(0, 0.02))
    else:
        wait_until(session, lambda: session.records() % EVERY == 0)
        time.sleep(rng.uniform(0, 0.03))
    return first


def kill(session: Session, how: str, rng: random.Random) -> None:
    """Ends a session in one of four ways and waits until nothing of it is left."""
    pids = session.pids()
    if how == "SIGKILL all":
        session.send(signal.SIGKILL, rng.sample(pids, len(pids)))
        session.wait(0.0 if session.from_nothing else 5.0)
    elif how == "SIGKILL one":
        session.send(signal.SIGKILL, [rng.choice(pids[1:] or pids) if session.from_nothing else rng.choice(pids)])
        session.wait(20.0)
    else:
        receivers = pids[:1] if session.from_nothing else rng.choice([pids, [rng.choice(pids)]])
        session.send(signal.SIGTERM, receivers)
        if how == "SIGTERM twice":
            time.sleep(rng.uniform(0, 0.05))
            session.send(signal.SIGTERM, pids)
            session.wait(20.0)
        elif not session.wait(60.0):
            raise SystemExit("a session did not stop within a minute of SIGTERM")


def flip_a_bit(run: RunDirectory, rng: random.Random) -> int:
    """Damages a random file of a random checkpoint, if another valid one remains; how many were lost."""
    valid = [path for path in checkpoints_in(run.checkpoints) if not damage_of(path)]
    if len(valid) < 2:
        return 0
    file = rng.choice(sorted(rng.choice(valid).iterdir()))
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return len(valid) - len([path for path in valid if not damage_of(path)])


def soak(folder: Path, *, kills: int, seed: int, steps: int) -> list[Kill]:
    """Trains ``runs/soaked`` with interruptions; raises SystemExit where a restart began too early."""
    rng, found = random.Random(seed), list[Kill]()
    run = RunDirectory(folder / "runs" / "soaked")
    start_up_seconds, start_up_from_nothing_seconds = 2.0, 10.0
    for number in range(kills):
        expected = newest_valid_step(run)
        behind_before = count_lines(run.metrics) - expected
        from_nothing = number % 10 == 9
        is_near_the_end = expected > steps - 4 * EVERY
        place = "start-up" if is_near_the_end else rng.choice(PLACES)
        how = rng.choice(SIGNALS)
        session = Session(folder, "soaked", from_nothing=from_nothing)
        usual = start_up_from_nothing_seconds if from_nothing else start_up_seconds
        first = await_place(session, place, rng, usual)
        if first is not None and not from_nothing:
            start_up_seconds = 0.5 * (start_up_seconds + first)
        where = session.where()
        kill(session, how, rng)
        if where not in ("save", "retention") and how.startswith("SIGKILL"):
            where = session.where() if session.where() in ("save", "retention") else where
        resumed = session.resumed_from
        if resumed is not None and resumed < expected:
            raise SystemExit(f"resumed from step {resumed}, but step {expected} was valid")
        lost = flip_a_bit(run, rng) if rng.random() < 0.3 else 0
        behind = count_lines(run.metrics) - newest_valid_step(run)
        repeated = max(0, behind if resumed is not None else behind - behind_before)
        found.append(Kill(how, where, resumed, repeated, lost, first))
        told = f"{how:<14} {where:<11} resumed from {resumed}, repeated {repeated}, lost {lost}, {first or 0:.1f} s"
        print(f"{number + 1:>3}/{kills} {told}", file=sys.stderr, flush=True)
    finish(folder, "soaked")
    return found


def newest_valid_step(run: RunDirectory) -> int:
    """Where a restart must begin; 0 without a checkpoint."""
    newest, _ = newest_valid(run.checkpoints)
    return step_of(newest) if newest else 0


def finish(folder: Path, name: str) -> None:
    """Trains to the end without interruption."""
    session = Session(folder, name, from_nothing=False)
    if not session.wait(1200.0):
        raise SystemExit(f"{name}: did not finish")
    status = session.run.read_status()
    if status.state != "done":
        raise SystemExit(f"{name}: ended as {status.state}: {status.reason}")


def compare(one: RunDirectory, other: RunDirectory) -> list[str]:
    """What differs between the ends of two runs."""
    differences = []
    for file in ("model.safetensors", "optimizer.safetensors"):
        a, b = (load_file(run.checkpoints / "latest" / file) for run in (one, other))
        same = a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        differences += [] if same else [file]
    records = [list(map(without_timings, read_records(run.metrics))) for run in (one, other)]
    differences += [] if records[0] == records[1] else ["metrics.jsonl"]
    states = [without_timings(asdict(read_state(run.checkpoints / "latest"))) for run in (one, other)]
    differences += [] if states[0] == states[1] else ["state.json"]
    return differences


def without_timings(facts: dict[str, Any]) -> dict[str, Any]:
    """What two equal runs have in common."""
    return {key: value for key, value in facts.items() if key not in ("seconds", "tokens_per_second")}


def show(kills: list[Kill], seconds: float) -> None:
    """A row per place where sessions were killed."""
    print(f"{'where':<11} {'kills':>5} {'SIGKILL':>8} {'SIGTERM':>8} {'repeated, mean':>15} {'most':>5}")
    for where, count in Counter(kill.where for kill in kills).most_common():
        here = [kill for kill in kills if kill.where == where]
        hard = sum(kill.signal.startswith("SIGKILL") for kill in here)
        repeated = [kill.repeated_steps for kill in here]
        print(
            f"{where:<11} {count:>5} {hard:>8} {count - hard:>8} {statistics.mean(repeated):>15.1f} {max(repeated):>5}"
        )
    first = [kill.seconds_to_first_step for kill in kills if kill.seconds_to_first_step is not None]
    print(
        f"{len(kills)} kills, {sum(kill.checkpoints_lost for kill in kills)} checkpoints lost to flipped bits, "
        f"{sum(kill.repeated_steps for kill in kills)} steps repeated, first step after {statistics.median(first):.1f} "
        f"s (median; most {max(first):.1f} s), {seconds / 60:.1f} minutes"
    )


def main() -> None:
    """Runs untouched and soaked, compares, prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", FROMSCRATCH_TIMEOUT_SECONDS="20")
    torch.set_num_threads(1)  # torch has read the variable already, and sums of two threads differ in their last bits
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="fromscratch-soak-"))
    train: dict[str, Any] = {**SMALL_RUN["train"], "evaluate_every": EVERY, "checkpoint_every": EVERY}
    train["keep_checkpoints"] = 3
    write_run_file(folder, train=train, data={"tokens": arguments.steps * 128, "epochs": 20}, eval={"tokens": 1_000})
    began_at = time.monotonic()
    finish(folder, "untouched")
    kills = soak(folder, kills=arguments.kills, seed=arguments.seed, steps=arguments.steps)
    show(kills, time.monotonic() - began_at)
    (folder / "soak.json").write_text(json.dumps([asdict(kill) for kill in kills], indent=1) + "\n")
    differences = compare(RunDirectory(folder / "runs" / "untouched"), RunDirectory(folder / "runs" / "soaked"))
    if differences:
        raise SystemExit(f"the runs differ in {', '.join(differences)}; both are in {folder}")
    print("weights, optimiser state, progress and metrics are those of the untouched run, bit for bit")


if __name__ == "__main__":
    main()
