"""The interface of engines: an engine runs a job on every task and returns the results.

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
from fromscratch.sources.texts import Encoded, Texts


class DocumentEncoder(Protocol):
    """The part of a tokenizer that preparation uses."""

    vocab_size: int
    end_of_text: int
    threads: int | None
    is_lossless: bool
    """Whether the ids of every text give the text back."""

    def check_end_of_text(self, purpose: str) -> None:
        """Raises UsageError if there is no end-of-text id, which ``purpose`` needs."""

    def decode_documents(self, documents: Sequence[NDArray[Any]]) -> list[str]:
        """Returns the text that the ids of each document give back."""

    def encode_documents(self, documents: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Returns the ids of each document without the end-of-text id."""

    def encode_texts(self, texts: Texts) -> Encoded:
        """Returns the ids of all documents without the end-of-text id, and the offset of each document."""

    def encode_fast(self, texts: Texts) -> Encoded:
        """Returns the same, faster. Raises FallbackError where that is not possible."""

    def description(self) -> dict[str, Any]:
        """Returns what the manifest records of the tokenizer."""

    def save(self, folder: Path) -> None:
        """Writes the tokenizer into a folder."""


@dataclass(frozen=True)
class Task:
    """A part and its place in the corpus."""

    index: int
    part: Part


Record = dict[str, Any]
"""The result of a task, as JSON; ``index`` is the task's."""
Job = Callable[[Task, DocumentEncoder], Record]
RunJob = Callable[[Job, Sequence[Task]], Iterator[Record]]
LoadTokenizer = Callable[[Path], DocumentEncoder]


class Engine(Protocol):
    """Runs jobs."""

    def started(self, tokenizer_folder: Path) -> AbstractContextManager[RunJob]:
        """Starts the workers for the length of a ``with`` block; results come in the order of completion.

        An error of a job is raised here and stops the others; finished tasks keep their results.
        """


@dataclass(frozen=True)
class InProcess:
    """Runs one task after the other in this process, on the threads of the tokenizer."""

    tokenizer: DocumentEncoder

    @contextmanager
    def started(self, tokenizer_folder: Path) -> Iterator[RunJob]:
        yield lambda job, tasks: (job(task, self.tokenizer) for task in tasks)
