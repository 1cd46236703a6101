"""A dataset on the Hugging Face Hub, by name: ``hf://HuggingFaceFW/fineweb?name=sample-10BT``.

``name`` is a configuration, which the dataset's card maps to files, or a folder of the repository.
``split`` is one of its splits (``train`` by default). ``revision`` is a branch, tag or commit. All
files are downloaded into the Hub's cache before they are divided.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fromscratch.errors import UsageError
from fromscratch.hub.downloads import download_file, list_files
from fromscratch.hub.names import HubName, dataset_name
from fromscratch.sources.base import Part
from fromscratch.sources.files import is_table, table_parts

PARAMETERS = ("name", "split", "revision")
CARD = "README.md"
TRAINING_SPLIT = "train"


@dataclass(frozen=True)
class HubDataset:
    """The parquet (or JSON Lines) files of a dataset's configuration."""

    name: HubName
    text_column: str = "text"

    @classmethod
    def parse(cls, text: str, *, text_column: str) -> "HubDataset":
        """Parses ``hf://owner/name?...``. Raises UsageError."""
        return cls(dataset_name(text, allowed=PARAMETERS), text_column)

    @property
    def description(self) -> str:
        query = "&".join(f"{key}={value}" for key, value in sorted(self.name.parameters.items()))
        return str(self.name) + (f"?{query}" if query else "")

    def left_out(self) -> str:
        return ""

    def parts(self) -> list[Part]:
        """Downloads the files that are not in the cache, then divides every file.

        Raises:
            UsageError: no such dataset, configuration or split, or offline with an incomplete cache.
            HubError: the Hub cannot be reached.
        """
        parts: list[Part] = []
        for file in self.files():
            parts += table_parts(download_file(self.name, file), file, self.text_column)
        return parts

    def files(self) -> list[str]:
        """Lists the paths in the repository, sorted."""
        listed = list_files(self.name)
        tables = [file for file in listed if is_table(Path(file))]
        chosen = self._choose(tables, listed)
        if not chosen:
            raise UsageError(f"{self.description}: has no parquet or JSON Lines files there")
        return chosen

    def _choose(self, tables: list[str], listed: list[str]) -> list[str]:
        configurations = _configurations(download_file(self.name, CARD)) if CARD in listed else {}
        wanted = self.name.parameters.get("name")
        split = self.name.parameters.get("split", TRAINING_SPLIT)
        if wanted is None and configurations:
            wanted = "default" if "default" in configurations else next(iter(configurations))
        if wanted in configurations:
            patterns = configurations[wanted]
            if split not in patterns:
                raise UsageError(f"{self.description}: has no split '{split}'; it has {', '.join(patterns)}")
            return [f for f in tables if any(_matches(f, pattern) for pattern in patterns[split])]
        if wanted is None:
            return [f for f in tables if _is_of_split(f, split)] or tables
        below = [f for f in tables if f.startswith(f"{wanted.rstrip('/')}/")]
        if not below:
            known = ", ".join(configurations) or "no configuration in its card"
            raise UsageError(f"{self.description}: has no configuration or folder '{wanted}'; it has {known}")
        return [f for f in below if _is_of_split(f, split)] or below


def _configurations(card: Path) -> dict[str, dict[str, list[str]]]:
    """Reads the card's ``configs``: file patterns by configuration and split, the default configuration first."""
    from huggingface_hub import metadata_load

    try:
        entries: Any = (metadata_load(card) or {}).get("configs") or []
    except ValueError:  # not YAML
        return {}
    entries = [entry for entry in entries if isinstance(entry, dict) and entry.get("data_files")]
    entries.sort(key=lambda entry: not entry.get("default", False))
    return {str(entry.get("config_name", "default")): _patterns_by_split(entry["data_files"]) for entry in entries}


def _patterns_by_split(data_files: Any) -> dict[str, list[str]]:
    if isinstance(data_files, str):
        return {TRAINING_SPLIT: [data_files]}
    patterns: dict[str, list[str]] = {}
    for item in data_files:
        split, path = (item["split"], item["path"]) if isinstance(item, dict) else (TRAINING_SPLIT, item)
        patterns.setdefault(str(split), []).extend([path] if isinstance(path, str) else path)
    return patterns


def _matches(file: str, pattern: str) -> bool:
    """Matches a shell pattern whose ``*`` also matches slashes, as in ``data/CC-MAIN-2013-20/*``."""
    return fnmatchcase(file, pattern) or fnmatchcase(file, pattern.replace("**/", ""))


def _is_of_split(file: str, split: str) -> bool:
    """Returns whether a folder or the file name names the split, as in ``data/train-00000-of-2.parquet``."""
    *folders, name = file.split("/")
    return split in folders or name.startswith((f"{split}-", f"{split}.", f"{split}_"))
