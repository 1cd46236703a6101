"""Where documents come from: one file per source, all behind ``Source``."""

from pathlib import Path

from fromscratch.data.sources.base import Part, Source
from fromscratch.data.sources.python_docs import PythonDocs
from fromscratch.data.sources.text_files import TextFiles

__all__ = ["Part", "PythonDocs", "Source", "TextFiles", "open_source"]

PYTHON_DOCS = "python-docs"


def open_source(word: str) -> Source:
    """The source that a command line names: ``python-docs[:package,...]``, or the path of texts."""
    name, _, packages = word.partition(":")
    if name == PYTHON_DOCS:
        return PythonDocs(tuple(p for p in packages.split(",") if p))
    return TextFiles(Path(word))
