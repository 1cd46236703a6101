"""Shows a few tokens of a store as text, with or without token boundaries."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fromscratch.data.engines.base import DocumentEncoder
from fromscratch.data.store import TokenSplit
from fromscratch.errors import UsageError

END_OF_TEXT_MARK = "<|endoftext|>"


@dataclass(frozen=True)
class ShownToken:
    """One id and its bytes."""

    id: int
    bytes: bytes
    is_end: bool

    @property
    def text(self) -> str:
        """Its text; bytes that are not a whole character appear as ``\\xNN``."""
        return END_OF_TEXT_MARK if self.is_end else self.bytes.decode("utf-8", "backslashreplace")


def show_tokens(
    split: TokenSplit, table: Sequence[bytes], *, start: int, tokens: int, end_of_text: int
) -> list[ShownToken]:
    """Reads the tokens ``[start, start + tokens)`` of a split, fewer at its end.

    ``table`` holds the bytes of every id. Raises UsageError where ``start`` is outside of the split.
    """
    if start >= split.tokens:
        raise UsageError(f"--start {start:,}: split '{split.name}' has {split.tokens:,} tokens, counted from 0")
    ids = split.read(start, min(tokens, split.tokens - start)).tolist()
    return [ShownToken(i, table[i] if i < len(table) else b"", i == end_of_text) for i in ids]


def plain_text(shown: Sequence[ShownToken], tokenizer: DocumentEncoder) -> str:
    """Returns the text alone, with a blank line at the end of a document."""
    documents: list[list[int]] = [[]]
    for token in shown:
        if token.is_end:
            documents.append([])
        else:
            documents[-1].append(token.id)
    return "\n\n".join(tokenizer.decode_documents([np.array(ids, dtype=np.int64) for ids in documents]))


def text_with_boundaries(shown: Sequence[ShownToken]) -> str:
    """Returns the text with ``|`` between tokens and a line feed at the end of a document."""
    return "".join(token.text + ("|\n" if token.is_end else "|") for token in shown).removesuffix("\n")
