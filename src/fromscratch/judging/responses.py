"""Answers of several models to the same questions, and lists of scores."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fromscratch.errors import DataError, UsageError
from fromscratch.finetuning.records import Exchange, read_records, to_exchanges

MAX_CHARACTERS = 50_000
"""Of a question with its reference, and of an answer. More does not fit into the context of most judges."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}")  # names become files


@dataclass(frozen=True)
class Question:
    """What the models were asked."""

    instruction: str
    input: str
    reference: str
    """A good answer; empty if there is none."""


@dataclass(frozen=True)
class AnswerSet:
    """Several models' answers to the same questions."""

    questions: tuple[Question, ...]
    answers: Mapping[str, tuple[str, ...]]
    """By model, one for each question."""

    @property
    def models(self) -> list[str]:
        """Names, in the order of the command line."""
        return list(self.answers)

    def first(self, limit: int | None) -> "AnswerSet":
        """Returns the first questions only; all for None."""
        answers = {model: texts[:limit] for model, texts in self.answers.items()}
        return AnswerSet(self.questions[:limit], answers)


def load_answers(files: Sequence[str], keys: Sequence[str]) -> AnswerSet:
    """Reads files of answers that were given to the same questions, in the same order.

    Args:
        files: ``[NAME=]FILE``. A model's name is NAME, or the file's stem; with several keys, the key is added.
        keys: where a record holds the answer. Each key is one model.

    Raises:
        UsageError: no such file, or a name that is not allowed or given twice.
        DataError: a record is not valid, or two files differ in a question; names it, counted from 0.
    """
    named: dict[str, tuple[Path, str]] = {}
    for file in files:
        name, path = _name_and_path(file)
        for key in keys:
            model = name if len(keys) == 1 else key if len(files) == 1 else f"{name} {key}"
            if not NAME.fullmatch(model):
                raise UsageError(
                    f"{file}: '{model}' is no name for a model (letters, digits, space, '.', '_' and '-', at most "
                    "100); write NAME=FILE"
                )
            if model in named:
                raise UsageError(f"{file}: another file is named '{model}' too; write NAME=FILE")
            named[model] = (path, key)
    loaded = {model: _read_answers(path, key) for model, (path, key) in named.items()}
    (first_model, (questions, _)), *rest = loaded.items()
    for model, (others, _) in rest:
        _check_same(named[first_model][0], questions, named[model][0], others)
    return AnswerSet(questions, {model: answers for model, (_, answers) in loaded.items()})


def _name_and_path(file: str) -> tuple[str, Path]:
    name, equals, path = file.partition("=")
    if not equals or Path(file).exists():
        return Path(file).stem, Path(file)
    return name, Path(path)


def _read_answers(path: Path, key: str) -> tuple[tuple[Question, ...], tuple[str, ...]]:
    file = read_records(path)
    questions = [_question(exchange) for exchange in to_exchanges(file, needs_response=False)]
    answers = []
    for number, (record, question) in enumerate(zip(file.records, questions, strict=True)):
        where = f"{path}: record {number}"
        if key not in record:
            raise DataError(
                f"{where} has no '{key}' (its keys: {', '.join(map(str, record))}); name the key of the answer with "
                "--answer-key"
            )
        answer = record[key]
        if not isinstance(answer, str):
            raise DataError(f"{where}: '{key}' is {type(answer).__name__}, expected text")
        for what, length in (
            ("the question", len(question.instruction + question.input + question.reference)),
            (f"'{key}'", len(answer)),
        ):
            if length > MAX_CHARACTERS:
                raise DataError(f"{where}: {what} has {length:,} characters, at most {MAX_CHARACTERS:,} can be judged")
        answers.append(answer)
    return tuple(questions), tuple(answers)


def _question(exchange: Exchange) -> Question:
    """Of a chat, the question is the whole conversation before the last answer."""
    last = exchange.turns[-1]
    if len(exchange.turns) == 1 and not exchange.system:
        return Question(last.instruction, last.input, last.response)
    lines = [f"System: {exchange.system}"] if exchange.system else []
    for turn in exchange.turns:
        lines += [f"User: {turn.instruction}", f"Assistant: {turn.response}"]
    return Question("\n\n".join(lines[:-1]), "", last.response)


def _check_same(path: Path, questions: Sequence[Question], other_path: Path, others: Sequence[Question]) -> None:
    for number, (one, other) in enumerate(zip(questions, others, strict=False)):
        for part in ("instruction", "input", "reference"):
            if (a := getattr(one, part)) != (b := getattr(other, part)):
                raise DataError(
                    f"{other_path}: record {number} is not that of {path}: its {part} is {b[:60]!r}, there {a[:60]!r}; "
                    "all files must answer the same questions in the same order"
                )
    if len(questions) != len(others):
        raise DataError(
            f"{other_path}: has {len(others):,} records, {path} has {len(questions):,}; record "
            f"{min(len(questions), len(others))} is the first that one of them lacks"
        )


def load_scores(path: Path) -> list[float]:
    """Reads a JSON list of scores from 0 to 100, which another program saved. Null, a missing score, becomes NaN.

    Raises:
        UsageError: no such file.
        DataError: it holds something else.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give a JSON list of scores, or a folder of 'fromscratch judge'")
    try:
        scores = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(scores, list) or not scores:
        raise DataError(f"{path}: expected a JSON list of scores, one for each question")
    for number, score in enumerate(scores):
        if score is not None and not is_score(score):
            raise DataError(f"{path}: item {number} is {str(score)[:60]!r}, expected a score from 0 to 100, or null")
    return [math.nan if score is None else float(score) for score in scores]


def is_score(value: Any) -> bool:
    """Whether a JSON value is a number from 0 to 100."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100
