"""Reads texts with a class each: CSV, TSV, JSON lists and JSON Lines. Divides them into parts, class by class."""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fromscratch.config.tune import Classify
from fromscratch.errors import DataError, UsageError
from fromscratch.finetuning.records import RecordsFile, read_records
from fromscratch.finetuning.splits import Split, split_records
from fromscratch.randomness import derive_seed

TEXT_NAMES = ("text", "sms", "message", "sentence", "content", "review", "body", "comment", "tweet", "document")
LABEL_NAMES = ("label", "class", "category", "target", "sentiment", "intent", "topic", "y")
SEPARATORS: dict[str, tuple[str, Literal[0, 3]]] = {".csv": (",", csv.QUOTE_MINIMAL), ".tsv": ("\t", csv.QUOTE_NONE)}
"""By the ending of a file: what stands between values, and whether values may be in quotation marks."""


@dataclass(frozen=True)
class LabelledTexts:
    """Texts and their classes, in the order of a file."""

    texts: list[str]
    labels: list[str]
    text_column: str
    label_column: str


def read_table(path: Path) -> RecordsFile:
    """Reads a CSV or TSV file, whose first line names the columns, or a file of JSON records.

    A TSV file has no quotation marks around values: a ``"`` is part of the text.

    Raises:
        UsageError: no such file.
        DataError: it is empty or damaged.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give a CSV or TSV file, a JSON list or JSON Lines")
    if path.suffix.lower() not in SEPARATORS:
        try:
            return read_records(path)
        except DataError as error:
            raise DataError(f"{error}; of a table, the name must end in .csv or .tsv") from None
    separator, quoting = SEPARATORS[path.suffix.lower()]
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(_rows(csv.reader(file, delimiter=separator, quoting=quoting, strict=True), path))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table ({error})") from None
    if not rows:
        raise DataError(f"{path}: holds no record")
    canonical = json.dumps(rows, sort_keys=True, separators=(",", ":"))
    return RecordsFile(path, rows, hashlib.sha256(canonical.encode()).hexdigest())


def _rows(reader: Any, path: Path) -> Iterator[dict[str, Any]]:
    columns: list[str] = next(reader, [])
    if repeated := [name for name, count in Counter(columns).items() if count > 1]:
        raise DataError(f"{path}: the first line names column {repeated[0]!r} twice")
    for row in reader:
        if row and len(row) != len(columns):
            raise DataError(
                f"{path}: line {reader.line_num} has {len(row)} values, but the first line names {len(columns)} columns"
            )
        if row:
            yield dict(zip(columns, row, strict=True))


def labelled_texts(file: RecordsFile, text_column: str | None, label_column: str | None) -> LabelledTexts:
    """Returns the text and the class of every record. None finds the column by its name.

    Raises:
        UsageError: no such column, or several with usual names.
        DataError: a record has no text or no class.
    """
    columns = list(file.records[0])
    text_name = _column(columns, text_column, TEXT_NAMES, "text", file.path)
    label_name = _column(columns, label_column, LABEL_NAMES, "label", file.path)
    texts, labels = [], []
    for number, record in enumerate(file.records):
        where = f"{file.path}: record {number}"
        for name in (text_name, label_name):
            if name not in record:
                raise DataError(f"{where} has no '{name}' (its keys: {', '.join(map(str, record)) or 'none'})")
        text, label = record[text_name], record[label_name]
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: '{text_name}' is {'empty' if isinstance(text, str) else type(text).__name__}")
        if not isinstance(label, str | int) or label == "":
            kind = "empty" if label == "" else type(label).__name__
            raise DataError(f"{where}: '{label_name}' is {kind}, expected a name or a whole number")
        texts.append(text)
        labels.append(label if isinstance(label, str) else json.dumps(label))
    return LabelledTexts(texts, labels, text_name, label_name)


def _column(columns: list[str], wanted: str | None, usual: Sequence[str], what: str, path: Path) -> str:
    option = f"--{what}-column (tune.{what}_column)"
    found = [name for name in columns if (name == wanted if wanted else name.strip().lower() in usual)]
    if len(found) == 1:
        return found[0]
    problem = f"no column {wanted!r}" if wanted else f"{'several columns' if found else 'no column'} with a usual name"
    raise UsageError(
        f"{path}: {problem} for the {what} among {', '.join(map(repr, found or columns))}; name it with {option}"
    )


def split_labelled(texts: LabelledTexts, tune: Classify, *, seed: int, where: str) -> Split:
    """Draws the parts class by class, so that each class has the same share of every part.

    A text that occurs again comes into the same part, and one with several classes into none. With
    ``balance = "undersample"``, different texts are drawn, as many of each class as the rarest has.

    Raises:
        DataError: there is only one class, or a class has too few texts.
    """
    labels_of = _labels_by_text(texts)
    members: dict[str, list[int]] = {label: [] for label in tune.classes}
    for index, (text, label) in enumerate(zip(texts.texts, texts.labels, strict=True)):
        if len(labels_of[text]) == 1:
            members[label].append(index)
    if tune.balance == "undersample":
        members = _same_sizes(members, texts.texts, seed)
    parts = [
        split_records(
            [texts.texts[index] for index in indices],
            validation=tune.validation_share,
            test=tune.test_share,
            seed=derive_seed(seed, "class", label),
            where=f"{where}, class {label!r}",
        ).of(indices)
        for label, indices in members.items()
    ]
    return Split(
        train=_joined(part.train for part in parts),
        validation=_joined(part.validation for part in parts),
        test=_joined(part.test for part in parts),
        repeated=sum(part.repeated for part in parts),
    )


def _joined(parts: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sorted(index for part in parts for index in part))


def _same_sizes(members: dict[str, list[int]], texts: list[str], seed: int) -> dict[str, list[int]]:
    """Draws as many different texts of each class as the rarest class has."""
    different = {label: list({texts[i]: i for i in reversed(indices)}.values()) for label, indices in members.items()}
    size = min(map(len, different.values()))
    drawn = {}
    for label, indices in different.items():
        order = np.random.default_rng(derive_seed(seed, "undersample", label)).permutation(indices)
        drawn[label] = sorted(order[:size].tolist())
    return drawn


def split_notices(texts: LabelledTexts, split: Split, tune: Classify) -> list[str]:
    """Returns what the user should know of the parts: their classes, and what is in none."""
    used = sorted({*split.train, *split.validation, *split.test})
    all_of, used_of = Counter(texts.labels), Counter(texts.labels[i] for i in used)
    counts = ", ".join(f"{label} {used_of[label]:,} of {all_of[label]:,}" for label in tune.classes)
    contradictory = {text for text, labels in _labels_by_text(texts).items() if len(labels) > 1}
    left_out = sum(text in contradictory for text in texts.texts)
    found = [
        f"texts used, by class: {counts}{'; tune.balance = ' + tune.balance if len(used) < len(texts.texts) else ''}"
    ]
    if left_out:
        found.append(f"{left_out:,} records are left out, because their text also occurs with another class")
    if split.repeated:
        found.append(f"{split.repeated:,} texts occur again; each is in the same part as the first")
    return found + split.notices_of_drawing()


def _labels_by_text(texts: LabelledTexts) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for text, label in zip(texts.texts, texts.labels, strict=True):
        found.setdefault(text, set()).add(label)
    return found
