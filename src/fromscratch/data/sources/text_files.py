"""Plain text: a folder of files, one document each, or one long file cut at blank lines."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fromscratch.data.sources.base import Part
from fromscratch.errors import DataError, UsageError

SUFFIXES = {".txt", ".md", ".rst", ".text"}
FILES_PER_PART = 1_000  # read as one unit of work, so that many small files make few output shards
PIECE_CHARACTERS = 8_192


@dataclass(frozen=True)
class TextFiles:
    """Every ``.txt``, ``.md`` and ``.rst`` below a folder, sorted by path, or one file of any suffix.

    One file alone is a whole corpus, and a corpus needs documents to hold some of them out: it is
    cut at the first blank line after every 8,192 characters. Nothing is lost or added by that.
    """

    path: Path

    @property
    def description(self) -> str:
        return f"text:{self.path.name}"

    def parts(self) -> list[Part]:
        """Groups of files. Raises UsageError where there is nothing to read."""
        if self.path.is_file():
            return [Part(name=self.path.name, documents=lambda: pieces_of(read_text(self.path)))]
        if not self.path.is_dir():
            raise UsageError(f"source {self.path}: no such file or folder")
        files = self._files_below()
        if not files:
            raise UsageError(f"source {self.path}: holds no text files ({', '.join(sorted(SUFFIXES))})")
        groups = [files[i : i + FILES_PER_PART] for i in range(0, len(files), FILES_PER_PART)]
        return [Part(name=group[0].name, documents=partial(map, read_text, group)) for group in groups]

    def _files_below(self) -> list[Path]:
        found = (p for p in self.path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        return sorted(found, key=lambda p: p.relative_to(self.path).as_posix())


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, its line ends as they are. Raises DataError where it is none."""
    try:
        return file.read_bytes().decode("utf-8")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text (byte {error.start}); convert it first") from error


def pieces_of(text: str) -> Iterator[str]:
    """The text in order, cut after blank lines into pieces of 8,192 characters or a little more."""
    begin = 0
    while begin < len(text):
        blank_line = text.find("\n\n", begin + PIECE_CHARACTERS)
        end = len(text) if blank_line < 0 else blank_line + 2
        yield text[begin:end]
        begin = end
