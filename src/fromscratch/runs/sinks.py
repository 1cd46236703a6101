"""Other tools that show a run's numbers: TensorBoard, Trackio, Weights & Biases. Each is imported when it is opened."""

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from fromscratch.errors import UsageError
from fromscratch.runs.records import to_float


class Sink(Protocol):
    """Receives numbers by step."""

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Takes the numbers of one step."""

    def close(self) -> None:
        """Waits until everything is written."""


class TensorBoard:
    """Event files in a folder; read by ``tensorboard --logdir FOLDER``."""

    def __init__(self, name: str, folder: Path) -> None:
        protocol = import_module("tensorboard.compat.proto.event_pb2")
        self._event, self._summary = protocol.Event, import_module("tensorboard.compat.proto.summary_pb2").Summary
        self._writer = import_module("tensorboard.summary.writer.event_file_writer").EventFileWriter(str(folder))

    def log(self, step: int, numbers: dict[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=number) for name, number in numbers.items()]
        self._writer.add_event(self._event(step=step, summary=self._summary(value=values)))

    def close(self) -> None:
        self._writer.close()


class _Tracker:
    """Trackio and Weights & Biases, which have the same functions ``init``, ``log`` and ``finish``.

    What they print goes to stderr, because stdout may hold JSON.
    """

    module: str

    def __init__(self, name: str, folder: Path) -> None:
        with redirect_stdout(sys.stderr):
            self._run = import_module(self.module).init(project="fromscratch", name=name)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self._run.finish()


class Trackio(_Tracker):
    """The local dashboard of the ``trackio`` package."""

    module = "trackio"


class WandB(_Tracker):
    """Weights & Biases."""

    module = "wandb"


SINKS: dict[str, Callable[[str, Path], Sink]] = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": WandB}


def open_sink(tool: str, name: str, folder: Path) -> Sink:
    """Opens a tool for the numbers of a run.

    Args:
        name: of the run, for tools that list runs.
        folder: for tools that write files.

    Raises:
        UsageError: the tool's package is not installed.
    """
    try:
        return SINKS[tool](name, folder)
    except ImportError as error:
        raise UsageError(f"{tool}: its package is not installed ({error}); pip install {tool}") from error


def numbers_in(record: dict[str, Any]) -> dict[str, float]:
    """Returns the numbers of a record but its step; yes or no is 1 or 0, and unknown values are left out."""
    values = {key: int(value) if isinstance(value, bool) else value for key, value in record.items() if key != "step"}
    return {key: number for key, value in values.items() if (number := to_float(value)) is not None}
