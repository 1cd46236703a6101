"""A program that saves checkpoints and is killed at every system call that matters; prints what remains.

    python -m tests.training.crashing FOLDER

It forks a child per crash point, which kills itself with SIGKILL just before the call of that number. Its own
process has no threads, so forking is safe; that is why it is a program and not a part of a test.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fromscratch.formats.checkpoints import TrainingState
from fromscratch.optim.composite import CompositeOptimizer
from fromscratch.runs.retention import BEST, LATEST, checkpoints_in, leftovers_in, newest_valid, recover_leftovers
from fromscratch.training.parallelism import SingleProcess
from fromscratch.training.saving import CheckpointSaver, SaveRequest

CALLS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "symlink")


def save(folder: Path, step: int, value: float) -> None:
    """One checkpoint whose weights all have one value; only the newest is kept."""
    torch.set_num_threads(1)
    model = nn.Linear(4, 4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    saver = CheckpointSaver(folder, keep=1)
    state = TrainingState(step=step, best_step=step, best_loss=1.0 / step)
    request = SaveRequest({"identity": "x"}, (None, None), before_writing=lambda: None)
    contents = SingleProcess().gather(model, CompositeOptimizer(torch.optim.AdamW(model.parameters())), {}, state)
    assert contents is not None
    saver.begin(contents, request)
    result = saver.collect(wait=True)
    assert result is not None and not result.error, result
    saver.close()


def die_before_call(number: int) -> None:
    """Kills this process at the n-th of the calls that change what a crash leaves, counted over all of them."""
    count = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count > number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return wrapper

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


def remains(folder: Path) -> dict[str, Any]:
    """What a restart finds, before and after it has put things in order."""
    newest, _ = newest_valid(folder)
    links = {name: (folder / name).resolve().name for name in (LATEST, BEST)}
    recover_leftovers(folder)
    after, _ = newest_valid(folder)
    return {
        "newest": newest and newest.name,
        "links": links,
        "newest_after": after and after.name,
        "leftovers_after": [path.name for path in leftovers_in(folder)],
        "folders_after": [path.name for path in checkpoints_in(folder)],
    }


def crash(place: Path, *, kind: str) -> None:
    """Crashes at the first call, at the second, and so on, until a child survives."""
    (place / "before").mkdir(parents=True)
    save(place / "before", 5, 1.0)
    if kind == "replaced":
        save(place / "before", 10, 1.0)
    for number in range(1000):
        folder = place / f"crash-{number}"
        shutil.copytree(place / "before", folder, symlinks=True)
        child = os.fork()
        if child == 0:
            die_before_call(number)
            save(folder, 10, 2.0)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        survived = os.waitstatus_to_exitcode(status) == 0
        print(json.dumps({"kind": kind, **remains(folder), "survived": survived}), flush=True)
        if survived:
            return


if __name__ == "__main__":
    for name in ("new", "replaced"):
        crash(Path(sys.argv[1]) / name, kind=name)
