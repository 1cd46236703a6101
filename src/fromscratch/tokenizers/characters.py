"""The tokenizer of nanoGPT's character-level models: an id is a character of its training text, and none ends a text.

Source of ``meta.pkl``: ``data/shakespeare_char/prepare.py`` of nanoGPT. It is a pickle of plain values.
"""

import pickletools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fromscratch.errors import DataError, UsageError
from fromscratch.files import read_json_object, to_strict_json
from fromscratch.sources.texts import Ids
from fromscratch.tokenizers.base import NO_END_OF_TEXT, Tokenizer

CHARACTERS_FILE, CHARACTERS = "characters.json", "characters"
META_FILE, ID_TO_CHARACTER = "meta.pkl", "itos"
PICKLE_SUFFIX = ".pkl"
MAX_META_BYTES = 64 << 20  # more than all of Unicode needs
SKIPPED = {"PROTO", "FRAME"}
VALUES = {"INT", "BININT", "BININT1", "BININT2", "LONG1", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
PUTS, GETS = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}


class CharacterTokenizer(Tokenizer):
    """Ids of single characters. A text with another character cannot be encoded."""

    kind = "characters"
    end_of_text = NO_END_OF_TEXT

    def __init__(self, characters: Sequence[str]) -> None:
        """``characters`` are those of the ids 0, 1, ... Raises ValueError unless they are distinct characters."""
        self._characters = list(characters)
        self._ids = {character: index for index, character in enumerate(characters)}
        if len(self._ids) != len(characters) or any(len(character) != 1 for character in characters):
            raise ValueError("its entries are not distinct single characters")
        self.vocab_size = len(characters)
        self.name = f"characters-{self.vocab_size}"

    def encode_documents(self, documents: Sequence[str]) -> list[Ids]:
        """Returns the ids of each document. Raises UsageError at a character that the model does not know."""
        try:
            return [np.array([self._ids[character] for character in text], dtype=np.uint32) for text in documents]
        except KeyError as error:
            raise UsageError(
                f"tokenizer {self.name}: the text holds {error.args[0]!r}, which is none of the model's "
                f"{self.vocab_size} characters; leave it out"
            ) from None

    def token_bytes(self) -> list[bytes]:
        """Returns the UTF-8 bytes of each character."""
        return [character.encode("utf-8", "replace") for character in self._characters]

    def _save_files(self, folder: Path) -> None:
        (folder / CHARACTERS_FILE).write_text(to_strict_json({CHARACTERS: self._characters}), "utf-8")


def load_characters(path: Path) -> CharacterTokenizer:
    """Reads a ``meta.pkl``, or the folder of a saved ``CharacterTokenizer``. Raises DataError."""
    try:
        if path.is_dir():
            return CharacterTokenizer(read_json_object(path / CHARACTERS_FILE)[CHARACTERS])
        table = _read_plain_pickle(path)[ID_TO_CHARACTER]
        return CharacterTokenizer([table[index] for index in range(len(table))])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not the characters of a nanoGPT model ({error!r})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _read_plain_pickle(path: Path) -> Any:
    """Reads a pickle that holds only dictionaries, texts and integers. Nothing can be executed: it is only parsed.

    Raises:
        DataError: it holds anything else.
    """
    if path.stat().st_size > MAX_META_BYTES:
        raise DataError(f"{path}: larger than any table of characters; give the meta.pkl of nanoGPT")
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(path.read_bytes()):
        if opcode.name in SKIPPED:
            continue
        if opcode.name in VALUES:
            stack.append(argument)
        elif opcode.name == "EMPTY_DICT":
            stack.append({})
        elif opcode.name == "MARK":
            marks.append(len(stack))
        elif opcode.name == "MEMOIZE" or opcode.name in PUTS:
            memo[len(memo) if argument is None else int(argument)] = stack[-1]
        elif opcode.name in GETS:
            stack.append(memo[argument or 0])
        elif opcode.name in ("SETITEM", "SETITEMS"):
            begin = marks.pop() if opcode.name == "SETITEMS" else len(stack) - 2
            items = stack[begin:]
            del stack[begin:]
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif opcode.name == "STOP":
            return stack.pop()
        else:
            raise DataError(
                f"{path}: refused: a pickle that holds more than tables of characters can run code when it is read "
                f"({opcode.name}); give the meta.pkl that nanoGPT's prepare.py wrote"
            )
    raise DataError(f"{path}: the pickle is not complete")
