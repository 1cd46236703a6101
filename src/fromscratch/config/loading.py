"""Reads run files: TOML, an optional ``base`` file, ``--set key=value``. Reports all problems at once."""

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fromscratch.config.base import NONE
from fromscratch.config.model import HuggingFaceConfig
from fromscratch.config.problems import error_messages, shown
from fromscratch.config.run import RunConfig
from fromscratch.errors import UsageError

MAX_FILE_BYTES = 1 << 20
MAX_BASES = 16
MAX_KEY_PARTS = 16
PATH_KEYS = ("data.store", "eval.store", "train.start_from")
BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class RunFile:
    """A validated run file, and where its relative paths start."""

    config: RunConfig
    folders: dict[str, Path]
    """For each of ``PATH_KEYS`` that is given, the folder of the file that gives it."""


def load_run_config(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Reads and validates a run file: the config of ``load_run_file``."""
    return load_run_file(path, overrides).config


def load_run_file(path: Path, overrides: list[str] | None = None) -> RunFile:
    """Reads and validates a run file.

    Args:
        path: the TOML file; its ``base`` key may name another file, relative to it.
        overrides: ``key.path=value`` items; the value is TOML, a bare word is text. Paths start as in ``path``.

    Raises:
        UsageError: the file is invalid; the message has one sentence per problem.
    """
    try:
        layers = [*read_with_bases(path), *((parse_override(item), path.parent) for item in overrides or [])]
        values: dict[str, Any] = {}
        folders: dict[str, Path] = {}
        for layer, folder in layers:
            values = merge(values, _with_long_parent(layer))
            folders |= dict.fromkeys(_path_keys_in(layer), folder)
    except RecursionError:
        raise UsageError(f"{path}: tables nested too deeply") from None
    config = parse_run_config(values, where=str(path))
    if isinstance(config.model, HuggingFaceConfig):
        raise UsageError(
            f"{path}: model.kind = {config.model.kind!r} cannot be trained from random weights; remove [model], and "
            "name the model as train.start_from of a run with [tune]"
        )
    return RunFile(config, folders)


def _with_long_parent(values: dict[str, Any]) -> dict[str, Any]:
    """Writes the short form of ``train.start_from`` as a table, so that it can be merged with one."""
    train = values.get("train")
    if not isinstance(train, dict) or not isinstance(train.get("start_from"), str) or train["start_from"] == NONE:
        return values
    return {**values, "train": {**train, "start_from": {"model": train["start_from"]}}}


def _path_keys_in(values: dict[str, Any]) -> Iterator[str]:
    """Yields the ``PATH_KEYS`` to which a file gives a path."""
    for key in PATH_KEYS:
        table, _, name = key.partition(".")
        value = values[table].get(name) if isinstance(values.get(table), dict) else None
        if value is not None and (not isinstance(value, dict) or "model" in value):
            yield key


def read_run_config(path: Path) -> RunConfig:
    """Reads and validates the resolved config of a run, which has no ``base``. Raises UsageError."""
    return parse_run_config(read_toml(path), where=str(path))


def run_config_or_none(path: Path) -> RunConfig | None:
    """Reads the resolved config of a run; None if it cannot be read."""
    try:
        return read_run_config(path)
    except UsageError:
        return None


def parse_run_config(values: dict[str, Any], *, where: str) -> RunConfig:
    """Validates nested dictionaries; error messages begin with ``where``. Raises UsageError."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        problems = error_messages(error, RunConfig)
        if len(problems) == 1:
            raise UsageError(f"{where}: {problems[0]}") from None
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise UsageError(f"{where}: {error.error_count()} problems\n{listed}") from None


def read_with_bases(path: Path) -> list[tuple[dict[str, Any], Path]]:
    """Reads a file and its chain of ``base`` files: values and folder of each, the lowest first. Raises UsageError."""
    layers, folders = [read_toml(path)], [path.parent]
    seen = [path.resolve()]
    while (base := layers[-1].pop("base", None)) is not None:
        if not isinstance(base, str):
            raise UsageError(f"{seen[-1]}: base = {shown(base)}: must be the path of another run file, in quotes")
        base_path = seen[-1].parent / base
        layers.append(_read_base(base_path, named_by=seen[-1]))
        folders.append(base_path.parent)
        if base_path.resolve() in seen:
            raise UsageError(f"{path}: circular 'base': {base_path.resolve()} is read twice")
        if len(seen) == MAX_BASES:
            raise UsageError(f"{path}: a chain of more than {MAX_BASES} 'base' files; merge some of them")
        seen.append(base_path.resolve())
    return list(zip(layers, folders, strict=True))[::-1]


def _read_base(path: Path, *, named_by: Path) -> dict[str, Any]:
    try:
        return read_toml(path)
    except UsageError as error:
        raise UsageError(f"{error} (named as 'base' in {named_by})") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Parses a TOML file. Raises UsageError, with line and column if the file is malformed."""
    text = _read_text(path)
    if text.startswith(BYTE_ORDER_MARK):
        raise UsageError(f"{path}: begins with a byte-order mark (line 1, column 1); save it as UTF-8 without BOM")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise UsageError(f"{path}: not valid TOML: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, or an integer with thousands of digits
        reason = str(error).replace("Cannot overwrite a value", "A key is given twice")
        raise UsageError(f"{path}: not valid TOML: {reason}") from None


def _read_text(path: Path) -> str:
    try:
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; give the path of a TOML run file")
        if not path.exists():
            raise UsageError(f"{path}: no such run file")
        if not path.is_file():
            raise UsageError(f"{path}: not a regular file; give the path of a TOML run file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UsageError(f"{path}: larger than {MAX_FILE_BYTES} bytes; a run file holds settings, not data")
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}: not UTF-8 text (line {line}, byte {error.start} of the file)") from error


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merges ``above`` into a copy of ``below``; a slot with another ``kind`` is replaced as a whole."""
    merged = dict(below)
    for key, value in above.items():
        old, new = _as_tables(merged.get(key), value)
        if (
            NONE not in (merged.get(key), value)
            and isinstance(old, dict)
            and isinstance(new, dict)
            and new.get("kind", old.get("kind")) == old.get("kind")
        ):
            merged[key] = merge(old, new)
        else:
            merged[key] = value
    return merged


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Returns ``key: old -> new`` for every value that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [
            line
            for name in keys
            for line in differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        ]
    return [] if old == new else [f"{key}: {old!r} -> {new!r}"]


def values_by_key(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Returns the values of nested tables by their key path, as ``train.optimizer.kind``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{above}{name}"
        found |= values_by_key(value, f"{key}.") if isinstance(value, dict) else {key: value}
    return found


def _as_tables(old: Any, new: Any) -> tuple[Any, Any]:
    """Turns two values of a slot into tables if one is the short form ``"kind"``.

    If only the new one has a kind, the old one gets it: the order of two settings does not matter.
    """
    if isinstance(old, str) and isinstance(new, dict):
        old = {"kind": old}
    elif isinstance(old, dict) and isinstance(new, str):
        new = {"kind": new}
    if isinstance(old, dict) and isinstance(new, dict) and "kind" in new:
        old = {"kind": new["kind"], **old}
    return old, new


def to_toml(value: Any) -> str:
    """Writes a value in one line of TOML, as ``--set`` takes it. None is ``"none"``."""
    value = NONE if value is None else value
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {to_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    return json.dumps(value) if isinstance(value, str | bool | int | float) else str(value)


def parse_override(item: str) -> dict[str, Any]:
    """Parses ``a.b=1`` into ``{"a": {"b": 1}}``. Raises UsageError if it has no key or no ``=``."""
    key, equals, raw = item.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts) or len(parts) > MAX_KEY_PARTS:
        raise UsageError(f"--set {shown(item)}: write it as key=value, for example --set train.seed=7")
    value = _override_value(raw.strip())
    for part in reversed(parts):
        value = {part: value}
    return dict(value)


def _override_value(raw: str) -> Any:
    """Parses a TOML value; anything else is text, because shells remove quotes."""
    try:
        values = tomllib.loads(f"value = {raw}")
    except (ValueError, RecursionError):
        return raw
    return values["value"] if len(values) == 1 else raw
