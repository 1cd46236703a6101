"""Reads files of records: JSON lists and JSON Lines, in the forms of Alpaca and of chats.

An Alpaca record has ``instruction``, ``input`` (may be absent or null) and ``output``. A chat record has
``messages``, a list of ``role`` and ``content``: an optional ``system`` message, then ``user`` and ``assistant`` in
turn.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fromscratch.config.prompts import PromptFormat
from fromscratch.errors import DataError, UsageError

RESPONSE = "model_response"
"""The key of a model's answer to a record."""
USER, ASSISTANT, SYSTEM = "user", "assistant", "system"


@dataclass(frozen=True)
class RecordsFile:
    """The records of a file, as they are in it."""

    path: Path
    records: list[dict[str, Any]]
    fingerprint: str
    """SHA-256 of the content, which does not depend on the path or the layout of the file."""


@dataclass(frozen=True)
class Turn:
    """An instruction and its response."""

    instruction: str
    input: str
    response: str


@dataclass(frozen=True)
class Exchange:
    """One record: one or several turns. Only chats have several, or a system message."""

    turns: tuple[Turn, ...]
    system: str = ""

    def question(self) -> str:
        """Returns a text that is the same for records that ask the same."""
        return json.dumps([self.system, *((turn.instruction, turn.input) for turn in self.turns)])

    def pieces(self, form: PromptFormat) -> list[tuple[str, bool]]:
        """Returns the texts in order, each with whether it is a response."""
        texts: list[tuple[str, bool]] = []
        for number, turn in enumerate(self.turns):
            prompt = form.prompt(turn.instruction, turn.input, system=self.system, is_first=number == 0)
            texts += [(prompt, False), (turn.response + form.ending, True)]
        return texts

    def prompt(self, form: PromptFormat) -> str:
        """Returns everything before the last response."""
        return "".join(text for text, _ in self.pieces(form)[:-1])


def read_records(path: Path) -> RecordsFile:
    """Reads a JSON list, or JSON Lines, of objects.

    Raises:
        UsageError: no such file.
        DataError: the file is empty, not JSON, or holds something else than objects.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give a JSON list or JSON Lines file of records")
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from None
    if not text.strip():
        raise DataError(f"{path}: is empty; it must hold records")
    records = _parse_lines(text, path) if text.lstrip().startswith("{") else _parse_list(text, path)
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise DataError(f"{path}: record {number} is {type(record).__name__}, expected an object with keys")
    if not records:
        raise DataError(f"{path}: holds no record")
    canonical = json.dumps(records, sort_keys=True, separators=(",", ":"))
    return RecordsFile(path, records, hashlib.sha256(canonical.encode()).hexdigest())


def _parse_list(text: str, path: Path) -> list[Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(found, list):
        raise DataError(f"{path}: holds {type(found).__name__}, expected a JSON list of records")
    return found


def _parse_lines(text: str, path: Path) -> list[Any]:
    """Parses JSON Lines; an object alone in a file counts as one record, over however many lines."""
    records = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}: line {number} is not valid JSON ({error})") from None
    return records


def to_exchanges(file: RecordsFile, *, needs_response: bool = True) -> list[Exchange]:
    """Reads every record as an exchange.

    Args:
        needs_response: whether a record without a response is an error, rather than one to be answered.

    Raises:
        DataError: names the first record that is not valid, counted from 0.
    """
    return [
        _exchange(record, f"{file.path}: record {number}", needs_response=needs_response)
        for number, record in enumerate(file.records)
    ]


def _exchange(record: dict[str, Any], where: str, *, needs_response: bool) -> Exchange:
    if "messages" in record:
        return _chat(record["messages"], where, needs_response=needs_response)
    instruction = _text(record, "instruction", where, is_needed=True)
    response = _text(record, "output", where, is_needed=needs_response)
    return Exchange((Turn(instruction, _text(record, "input", where), response),))


def _text(record: dict[str, Any], key: str, where: str, *, is_needed: bool = False) -> str:
    if is_needed and key not in record:
        known = ", ".join(map(str, record)) or "none"
        raise DataError(
            f"{where} has no '{key}' (its keys: {known}); a record needs instruction and output, or messages"
        )
    value = "" if record.get(key) is None and not is_needed else record[key]
    if not isinstance(value, str):
        raise DataError(f"{where}: '{key}' is {type(value).__name__}, expected text")
    if is_needed and not value.strip():
        raise DataError(f"{where}: '{key}' is empty")
    return value


def _chat(messages: Any, where: str, *, needs_response: bool) -> Exchange:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise DataError(f"{where}: 'messages' must be a list of objects with role and content")
    texts = [
        (message.get("role"), _text(message, "content", f"{where}, message {number}", is_needed=True))
        for number, message in enumerate(messages)
    ]
    system = texts.pop(0)[1] if texts and texts[0][0] == SYSTEM else ""
    if not needs_response and texts and texts[-1][0] == USER:
        texts.append((ASSISTANT, ""))
    roles = [role for role, _ in texts]
    if not texts or len(texts) % 2 or roles != [USER, ASSISTANT] * (len(texts) // 2):
        raise DataError(
            f"{where}: its roles are {', '.join(map(str, roles)) or 'none'}; expected user and assistant in turn, "
            "after an optional system message"
        )
    asked, answered = texts[::2], texts[1::2]
    turns = (Turn(question, "", answer) for (_, question), (_, answer) in zip(asked, answered, strict=True))
    return Exchange(tuple(turns), system)


def as_json(records: Sequence[dict[str, Any]]) -> str:
    """Returns records as a readable JSON list."""
    return json.dumps(records, ensure_ascii=False, indent=4) + "\n"
