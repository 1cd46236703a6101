"""Where documents come from: one file per source, all behind ``Source``."""

from pathlib import Path

from fromscratch.sources.base import InMemory, Part, Source
from fromscratch.sources.files import Files
from fromscratch.sources.hub import HubDataset, is_hub_name
from fromscratch.sources.python_docs import PythonDocs

__all__ = ["Files", "HubDataset", "InMemory", "Part", "PythonDocs", "Source", "open_source"]

PYTHON_DOCS = "python-docs"


def open_source(word: str, *, text_column: str = "text") -> Source:
    """The source that a command line names.

    ``python-docs[:package,...]``, ``hf://owner/name[?name=CONFIG]``, or the path of a file or folder.
    ``text_column`` is the column of parquet files, and the key of JSON Lines, that holds the text.

    Raises:
        UsageError: a Hub name that is malformed.
    """
    if is_hub_name(word):
        return HubDataset.parse(word, text_column=text_column)
    name, _, packages = word.partition(":")
    if name == PYTHON_DOCS:
        return PythonDocs(tuple(p for p in packages.split(",") if p))
    return Files(Path(word).expanduser(), text_column)
