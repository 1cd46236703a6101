"""Where documents come from: one file per source, all behind ``Source``."""

from pathlib import Path

from fromscratch.hub.names import has_hub_prefix
from fromscratch.sources.base import InMemory, Part, Source
from fromscratch.sources.files import Files, WholeFile
from fromscratch.sources.hub import HubDataset
from fromscratch.sources.python_docs import PythonDocs

__all__ = ["Files", "HubDataset", "InMemory", "Part", "PythonDocs", "Source", "WholeFile", "open_source"]

PYTHON_DOCS, WHOLE = "python-docs", "whole"


def open_source(name: str, *, text_column: str = "text") -> Source:
    """Returns the source that a command line names.

    Args:
        name: ``python-docs[:package,...]``, ``hf://owner/name[?name=CONFIG]``, ``whole:FILE``, or the path of a file
            or folder.
        text_column: the column of parquet files, and the key of JSON Lines, that holds the text.

    Raises:
        UsageError: a malformed name on the Hub.
    """
    if has_hub_prefix(name):
        return HubDataset.parse(name, text_column=text_column)
    kind, _, rest = name.partition(":")
    if kind == PYTHON_DOCS:
        return PythonDocs(tuple(p for p in rest.split(",") if p))
    if kind == WHOLE:
        return WholeFile(Path(rest).expanduser())
    return Files(Path(name).expanduser(), text_column)
