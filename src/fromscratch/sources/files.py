"""Files and folders of text. The suffix of a file's name decides how it is read."""

from dataclasses import dataclass
from pathlib import Path

from fromscratch.errors import UsageError
from fromscratch.sources import jsonl, text_files
from fromscratch.sources.base import Part, files_below
from fromscratch.sources.parquet import parquet_parts

PARQUET_SUFFIX = ".parquet"


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
            return table_parts(self.path, self.path.name, self.text_column) or text_files.long_text_parts(self.path)
        if not self.path.is_dir():
            raise UsageError(f"source {self.path}: no such file or folder")
        tables = files_below(self.path, is_table)
        texts = files_below(self.path, lambda path: path.suffix.lower() in text_files.SUFFIXES)
        if not tables and not texts:
            kinds = ", ".join([PARQUET_SUFFIX, *jsonl.SUFFIXES, *sorted(text_files.SUFFIXES)])
            raise UsageError(f"source {self.path}: holds no text files ({kinds})")
        parts = [
            part
            for path in tables
            for part in table_parts(path, path.relative_to(self.path).as_posix(), self.text_column)
        ]
        return parts + (text_files.text_folder_parts(texts, self.path) if texts else [])


def is_table(path: Path) -> bool:
    """Returns whether a file holds one document per row or line."""
    return path.suffix.lower() == PARQUET_SUFFIX or jsonl.is_json_lines(path)


def table_parts(path: Path, name: str, text_column: str) -> list[Part]:
    """Divides a file of rows or lines; returns no parts for any other file."""
    if path.suffix.lower() == PARQUET_SUFFIX:
        return parquet_parts(path, name, text_column)
    return jsonl.json_lines_parts(path, name, text_column) if jsonl.is_json_lines(path) else []
