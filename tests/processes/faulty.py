"""``fromscratch`` with a fault in one process: what torchrun's workers run in tests.

``FAULTS`` in the environment is a JSON list of [attempt, rank, step, kind]: in that attempt (0 is the
first, torchrun's restarts follow), the process of that rank fails at that step, in the middle of it.
"""

import json
import os
import signal
import time
from typing import Any

from fromscratch.processes.restarts import restarts
from fromscratch.training.step import Stepper, StepResult
from tests.processes.forked import fromscratch

EVERY_ATTEMPT = -1


def suffer(kind: str) -> None:
    """Raises, is killed, or hangs."""
    if kind == "raise":
        raise ValueError("a made-up fault")
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        time.sleep(3600)  # a signal does not end it: training's handlers only set a flag


def insert_faults(faults: list[tuple[int, int, int, str]]) -> None:
    """Every process goes wrong where its faults say, before its backward pass."""
    original, rank = Stepper._gather_losses, int(os.environ["RANK"])
    taken = Stepper.take

    def take(self: Stepper, step: int, *arguments: Any, **options: Any) -> StepResult:
        self.__dict__["_now"] = step
        return taken(self, step, *arguments, **options)

    def gather(self: Stepper, *arguments: Any) -> Any:
        for attempt, sick, step, kind in faults:
            if attempt in (EVERY_ATTEMPT, restarts()) and sick == rank and step == self.__dict__["_now"]:
                suffer(kind)
        return original(self, *arguments)

    Stepper.take, Stepper._gather_losses = take, gather  # type: ignore[method-assign,assignment]


def run(*arguments: str) -> None:
    """The command line, with the faults of the environment."""
    insert_faults(json.loads(os.environ.get("FAULTS", "[]")))
    fromscratch(*arguments)
