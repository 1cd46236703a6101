"""``fromscratch`` with a fault in one process: what torchrun starts in tests instead of ``-m fromscratch``.

``FAULTS`` in the environment is a JSON list of [attempt, rank, step, kind]: in that attempt (0 is the
first, torchrun's restarts follow), the process of that rank suffers at that step, in the middle of it.
"""

import json
import os
import signal
import time
from typing import Any

from fromscratch.cli.main import main
from fromscratch.processes.restarts import restarts
from fromscratch.training.step import Stepper, StepResult

EVERY_ATTEMPT = -1


def suffer(kind: str) -> None:
    """Raises, dies or hangs."""
    if kind == "raise":
        raise ValueError("a made-up fault")
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        time.sleep(3600)  # a signal does not end it: the handlers of training only take note


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


if __name__ == "__main__":
    insert_faults(json.loads(os.environ.get("FAULTS", "[]")))
    main()
