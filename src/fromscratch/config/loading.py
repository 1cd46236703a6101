"""Reads run files: TOML, an optional ``base`` file, ``--set key=value``; all problems at once."""

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fromscratch.config.problems import sentences
from fromscratch.config.run import RunConfig
from fromscratch.errors import UsageError

MAX_FILE_BYTES = 1 << 20
MAX_BASES = 16
BYTE_ORDER_MARK = "\ufeff"


def load_run_config(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """A run file as a checked config.

    Args:
        path: the TOML file; its ``base`` key may name another, relative to it.
        overrides: ``key.path=value`` items, the value in TOML (bare words are text).

    Raises:
        UsageError: one sentence per problem, all of them at once.
    """
    values = read_with_bases(path)
    for item in overrides or []:
        values = merge(values, parse_override(item))
    return parse_run_config(values, where=str(path))


def parse_run_config(values: dict[str, Any], *, where: str) -> RunConfig:
    """A config from nested dictionaries; ``where`` begins the error message."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        problems = sentences(error, RunConfig)
        if len(problems) == 1:
            raise UsageError(f"{where}: {problems[0]}") from None
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise UsageError(f"{where}: {len(problems)} problems\n{listed}") from None


def read_with_bases(path: Path) -> dict[str, Any]:
    """The file's values laid over those of its ``base``, and so on down. Raises UsageError."""
    layers: list[dict[str, Any]] = []
    seen: list[Path] = []
    current: Path | None = path
    while current is not None:
        if current.resolve() in seen or len(seen) > MAX_BASES:
            raise UsageError(f"{path}: 'base' leads in a circle back to {current}")
        seen.append(current.resolve())
        values = read_toml(current)
        base = values.pop("base", None)
        if base is not None and not isinstance(base, str):
            raise UsageError(f"{current}: base = {base!r}: must be the path of another run file, in quotes")
        layers.append(values)
        current = current.parent / base if base is not None else None
    merged: dict[str, Any] = {}
    for values in reversed(layers):
        merged = merge(merged, values)
    return merged


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises UsageError with line and column where it is malformed."""
    if not path.exists():
        raise UsageError(f"{path}: no such run file")
    if not path.is_file():
        raise UsageError(f"{path}: not a regular file; give the path of a TOML run file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UsageError(f"{path}: larger than {MAX_FILE_BYTES} bytes; a run file holds settings, not data")
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start})") from error
    if text.startswith(BYTE_ORDER_MARK):
        raise UsageError(f"{path}: begins with a byte-order mark (line 1, column 1); save it as UTF-8 without BOM")
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not valid TOML: {error or 'nested too deeply'}") from None


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below``, table by table; a slot given another ``kind`` is replaced whole."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) == old.get("kind"):
            merged[key] = merge(old, value)
        elif isinstance(old, str) and isinstance(value, dict) and value.get("kind", old) == old:
            merged[key] = {"kind": old, **value}  # the short form of a slot, given a setting
        else:
            merged[key] = value
    return merged


def parse_override(item: str) -> dict[str, Any]:
    """``a.b=1`` as ``{"a": {"b": 1}}``. Raises UsageError when it has no key or no ``=``."""
    key, equals, raw = item.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise UsageError(f"--set {item}: write it as key=value, for example --set train.seed=7")
    try:
        value: Any = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()  # a bare word, which a shell leaves without its quotes
    for part in reversed(parts):
        value = {part: value}
    return dict(value)
