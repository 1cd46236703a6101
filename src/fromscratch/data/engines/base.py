"""What an engine is: it gives every task to a job, somewhere, and hands back what comes of it.

A job is a plain function of a task and a tokenizer. Jobs and tasks are small and can be sent to other
processes; texts and tokens are read and written where the job runs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fromscratch.sources.base import Part


class DocumentEncoder(Protocol):
    """What preparation needs of a tokenizer."""

    vocab_size: int
    end_of_text: int
    threads: int | None

    def encode_documents(self, documents: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Ids of each document without the end-of-text id."""

    def description(self) -> dict[str, Any]:
        """Facts for the manifest."""

    def save(self, folder: Path) -> None:
        """Writes the tokenizer into a folder."""


@dataclass(frozen=True)
class Task:
    """A part and its place in the corpus."""

    index: int
    part: Part


Facts = dict[str, Any]
Job = Callable[[Task, DocumentEncoder], Facts]
Run = Callable[[Job, Sequence[Task]], Iterator[Facts]]
LoadTokenizer = Callable[[Path], DocumentEncoder]


class Engine(Protocol):
    """Somewhere to run jobs."""

    def started(self, tokenizer_folder: Path) -> AbstractContextManager[Run]:
        """Ready for work while the block lasts; results come in the order in which tasks end.

        A job's error ends the run, is raised here, and leaves the tasks that ended as they are.
        """


@dataclass(frozen=True)
class InProcess:
    """One task after the other, in this process, with the tokenizer's own threads."""

    tokenizer: DocumentEncoder

    @contextmanager
    def started(self, tokenizer_folder: Path) -> Iterator[Run]:
        yield lambda job, tasks: (job(task, self.tokenizer) for task in tasks)
