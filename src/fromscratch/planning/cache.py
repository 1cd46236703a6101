"""JSON files in the user's data folder that remember what was measured on this machine."""

from pathlib import Path
from typing import Any

from fromscratch.errors import DataError
from fromscratch.files import data_home, read_json_object, to_strict_json, write_atomically


def cache_file(name: str) -> Path:
    """Returns the path of a cache."""
    return data_home() / f"{name}.json"


def read_cache(name: str) -> dict[str, Any]:
    """Returns all entries. Treats a missing or damaged file as empty, because everything can be measured again."""
    try:
        return read_json_object(cache_file(name))
    except DataError:
        return {}


def add_to_cache(name: str, key: str, entry: Any) -> None:
    """Writes an entry. Raises OSError if the folder is not writable."""
    path = cache_file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_strict_json({**read_cache(name), key: entry}, indent=1))
