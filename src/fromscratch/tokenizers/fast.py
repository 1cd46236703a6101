"""Encodes with gigatoken, several times as fast as tiktoken and tokenizers, and checks it against them.

gigatoken is young. A sample of every batch is encoded by the tokenizer's own library too; where the ids
differ, or gigatoken cannot be used, ``FallbackError`` says why, and the caller uses the own library.
"""

import os
import sys
from collections.abc import Hashable
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fromscratch.sources.texts import Encoded, FallbackError, Ids, Texts

SAMPLED_DOCUMENTS, SAMPLED_BYTES = 8, 1_024
"""Documents of each batch that are checked, and bytes of each."""
CUT_IDS = 16
"""Last ids of a cut sample that are not compared: where the text is cut, they may rightly differ."""
MAX_CACHE_BYTES = 64 << 20
"""gigatoken remembers every word, about 100 bytes each; a new one is opened where memory grew by more."""
MIN_RENEWAL_BYTES = 4 << 20
"""Text that one gigatoken encodes at least; opening one takes as long as 10 MB of text."""
PROBE = (
    "<|endoftext|> a<|endoftext|>b <|im_end|></s>",
    "I'm it's we've I'LL 12345 3.14  two  spaces \n\n\tx  \r\n end ",
    "\x00 \u2028\u00a0naïve Ünïcödé 日本語のテキスト \U0001f600\U0001f468\u200d\U0001f469 e\u0301 ٣٤٥ ½²",
)


class OwnEncoder(Hashable, Protocol):
    """The part of a tokenizer that is used here."""

    threads: int | None

    def encode_texts(self, texts: Texts) -> Encoded:
        """Returns the ids of all documents, and the offset of each document."""

    def fast_definition(self) -> str | None:
        """Returns a ``tokenizer.json`` without special tokens; None where gigatoken is not used."""


class FastEncoder:
    """A tokenizer whose texts gigatoken encodes."""

    def __init__(self, definition: str, own: OwnEncoder) -> None:
        """Raises FallbackError where gigatoken is not installed, or does not fit the tokenizer."""
        try:
            import awkward
            import gigatoken
        except ImportError:
            raise FallbackError("gigatoken is not installed (pip install gigatoken)") from None
        self._awkward, self._load = awkward, gigatoken.Tokenizer.from_json
        self._definition, self._own = definition, own
        self._renew()
        probe = Texts.of(PROBE)
        self._check(probe, *self._encode(probe))

    def encode_texts(self, texts: Texts) -> Encoded:
        """Returns the ids of all documents, and the offset of each document.

        Raises:
            FallbackError: the ids of a sample are not those of the tokenizer's own library.
        """
        if self._encoded_bytes > MIN_RENEWAL_BYTES and resident_bytes() - self._resident_bytes > MAX_CACHE_BYTES:
            self._renew()
        ids, offsets = self._encode(texts)
        self._check(texts, ids, offsets)
        return ids, offsets

    def _renew(self) -> None:
        self._engine: Any = None  # freed before the next one is made
        try:
            self._engine = self._load(self._definition)
        except Exception as error:  # it names no common class
            raise FallbackError(f"gigatoken cannot read this tokenizer ({error})") from None
        self._resident_bytes, self._encoded_bytes = resident_bytes(), 0

    def _encode(self, texts: Texts) -> Encoded:
        contents = self._awkward.contents
        characters = contents.NumpyArray(texts.data, parameters={"__array__": "char"})
        offsets = self._awkward.index.Index64(texts.offsets)
        strings = contents.ListOffsetArray(offsets, characters, parameters={"__array__": "string"})
        try:
            found = self._engine.encode_batch(self._awkward.Array(strings), parallel=self._own.threads != 1).layout
        except Exception as error:  # it names no common class
            raise FallbackError(f"gigatoken failed ({error})") from None
        self._encoded_bytes += len(texts.data)
        return np.asarray(found.content.data, dtype=np.uint32), np.asarray(found.offsets.data, dtype=np.int64)

    def _check(self, texts: Texts, ids: Ids, offsets: NDArray[np.int64]) -> None:
        """Compares the ids of some documents, spread over the batch, with those of the tokenizer's own library."""
        data = texts.data.data
        count = min(len(texts), SAMPLED_DOCUMENTS)
        for index in np.linspace(0, len(texts) - 1, count, dtype=np.int64).tolist():
            whole = data[texts.offsets[index] : texts.offsets[index + 1]]
            found = ids[offsets[index] : offsets[index + 1]]
            is_cut = len(whole) > SAMPLED_BYTES
            expected = self._own_ids(whole[:SAMPLED_BYTES])
            compared = max(0, len(expected) - CUT_IDS) if is_cut else max(len(expected), len(found))
            if np.array_equal(found[:compared], expected[:compared]):
                continue
            if not is_cut or not np.array_equal(found, self._own_ids(whole)):
                raise FallbackError("gigatoken gave other ids than the tokenizer's own library")

    def _own_ids(self, data: memoryview) -> Ids:
        return self._own.encode_texts(Texts.of([str(data, "utf-8", "ignore")]))[0]


def encode_fast(tokenizer: OwnEncoder, texts: Texts) -> Encoded:
    """Encodes with gigatoken, or with the tokenizer itself where that is not used for its kind.

    Raises:
        FallbackError: gigatoken is not installed, does not fit the tokenizer, or gave other ids.
    """
    opened = _opened(tokenizer)
    if isinstance(opened, FallbackError):
        raise opened
    return opened.encode_texts(texts)


@lru_cache(maxsize=1)  # a worker has one tokenizer, for all its parts
def _opened(tokenizer: OwnEncoder) -> FastEncoder | OwnEncoder | FallbackError:
    definition = tokenizer.fast_definition()
    try:
        return tokenizer if definition is None else FastEncoder(definition, tokenizer)
    except FallbackError as error:
        return error


def resident_bytes() -> int:
    """Returns the memory of this process; where there is no /proc, the most that it ever was."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        import resource  # not on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")
