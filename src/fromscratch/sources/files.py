"""Files and folders of text. The suffix of a file's name decides how it is read."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fromscratch.errors import UsageError
from fromscratch.sources import jsonl, text_files
from fromscratch.sources.base import MAX_DOCUMENT_BYTES, DamagedFile, Part, files_below
from fromscratch.sources.parquet import parquet_parts

PARQUET_SUFFIX = ".parquet"
MAX_KINDS = 5


@dataclass(frozen=True)
class Files:
    """One file, or every file of a known kind below a folder."""

    path: Path
    text_column: str = "text"

    @property
    def description(self) -> str:
        return f"files:{self.path.name}"

    def parts(self) -> list[Part]:
        """Lists the parts of every file. Raises UsageError where there is nothing to read."""
        if self.path.is_file():
            if is_table(self.path) or (_is_json(self.path) and jsonl.holds_json_lines(self.path)):
                return table_parts(self.path, self.path.name, self.text_column)
            check_text_file(self.path)
            return text_files.long_text_parts(self.path)
        if not self.path.is_dir():
            raise UsageError(f"source {self.path}: no such file or folder")
        tables, texts, others = self._sorted_files()
        if not tables and not texts:
            kinds = ", ".join([PARQUET_SUFFIX, *jsonl.SUFFIXES, *sorted(text_files.SUFFIXES)])
            there = f"; it has {_list(others)}" if others else ""
            raise UsageError(f"source {self.path}: holds no text files ({kinds}){there}")
        parts = [
            part
            for path in tables
            for part in table_parts(path, path.relative_to(self.path).as_posix(), self.text_column)
        ]
        return parts + (text_files.text_folder_parts(texts, self.path) if texts else [])

    def left_out(self) -> str:
        """Says which files of the folder are not read; empty if all are."""
        others = self._sorted_files()[2] if self.path.is_dir() else []
        return f"source {self.path}: left out {_list(others)}" if others else ""

    def _sorted_files(self) -> tuple[list[Path], list[Path], list[Path]]:
        """Returns the files of rows or lines, the text files, and the others."""
        tables, texts, others = list[Path](), list[Path](), list[Path]()
        for path in files_below(self.path):
            if not path.is_file():
                others.append(path)
            elif is_table(path) or (_is_json(path) and jsonl.holds_json_lines(path, key=self.text_column)):
                tables.append(path)
            else:
                (texts if path.suffix.lower() in text_files.SUFFIXES else others).append(path)
        return tables, texts, others


@dataclass(frozen=True)
class WholeFile:
    """One text file as one document, however long; ``Files`` divides it at blank lines."""

    path: Path

    @property
    def description(self) -> str:
        return f"whole:{self.path.name}"

    def parts(self) -> list[Part]:
        """Returns one part. Raises UsageError for anything but a text file of a size that a document may have."""
        if not self.path.is_file():
            raise UsageError(f"source whole:{self.path}: no such file")
        if is_table(self.path):
            raise UsageError(f"source whole:{self.path}: holds one document per row or line; leave out 'whole:'")
        check_text_file(self.path)
        size = self.path.stat().st_size
        if size > MAX_DOCUMENT_BYTES:
            raise UsageError(
                f"source whole:{self.path}: has {size:,} bytes, and a document at most {MAX_DOCUMENT_BYTES:,}; leave "
                "out 'whole:', which divides it at blank lines"
            )
        if not size:
            return [DamagedFile(self.path.name, f"{self.path}: is empty")]
        return [text_files.TextFilesPart(self.path.name, (self.path,), size)]

    def left_out(self) -> str:
        """Nothing."""
        return ""


def is_table(path: Path) -> bool:
    """Returns whether the name of a file says that it holds one document per row or line."""
    return path.suffix.lower() == PARQUET_SUFFIX or jsonl.is_json_lines(path)


def _is_json(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def check_text_file(path: Path) -> None:
    """Raises UsageError for a file whose content is no text of documents, although it can be read as text."""
    if _is_json(path):
        raise UsageError(
            f"source {path}: a JSON file, not one object per line; convert it to JSON Lines "
            "(jq -c '.[]' FILE.json > FILE.jsonl)"
        )
    if jsonl.holds_json_lines(path):
        raise UsageError(
            f"source {path}: holds JSON Lines, and would be read as plain text because of its name; rename it to .jsonl"
        )
    if path.suffix.lower() in (".csv", ".tsv"):
        raise UsageError(f"source {path}: a table; convert it to parquet or JSON Lines with a column of text")


def _list(files: list[Path]) -> str:
    kinds = Counter(_kind(path) for path in files)
    found = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(MAX_KINDS))
    return f"{len(files)} file{'s' if len(files) > 1 else ''} ({found}; the first is {files[0].name})"


def _kind(path: Path) -> str:
    if not path.is_file():
        return "broken link" if path.is_symlink() else "special file"
    return path.suffix.lower() or "no suffix"


def table_parts(path: Path, name: str, text_column: str) -> list[Part]:
    """Divides a file of rows or lines."""
    divide = parquet_parts if path.suffix.lower() == PARQUET_SUFFIX else jsonl.json_lines_parts
    return divide(path, name, text_column)
