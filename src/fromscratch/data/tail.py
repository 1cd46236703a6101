"""Holds out the end of a corpus of few documents, where a hash would hold out no document, or all of them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fromscratch.data.documents import SPLITS, DocumentRule, SplitRule, TailRule, document_digest
from fromscratch.data.encode import learnt_texts
from fromscratch.data.engines.base import DocumentEncoder
from fromscratch.sources.base import Part, Source
from fromscratch.sources.texts import Texts, strings_of, texts_in

MAX_DOCUMENTS = 100_000  # more are not few, whatever the share
MIN_SHARE, MAX_RAISED_CHARACTERS = 0.1, 1 << 20
"""A tail is at least a tenth of the text, or a million characters where that is less."""
BREAKS = ("\n\n", "\n", ". ", " ")

Learnt = Callable[[str], bytes]


@dataclass(frozen=True)
class _Document:
    part: Part
    characters: int
    digest: bytes


def hold_out_tail(
    sources: Sequence[Source], rule: SplitRule, documents: DocumentRule, tokenizer: DocumentEncoder | None = None
) -> tuple[SplitRule, str]:
    """Returns the rule of a preparation: one that holds out a tail where the given rule leaves a split empty.

    Reads documents until both splits have one, so of most corpora only the beginning.

    Args:
        tokenizer: what encodes the documents; by default one that gives every text back.

    Returns:
        The rule, and a sentence for the user; it is empty where the rule is the given one.

    Raises:
        DataError: damaged input, unless it is skipped.
    """

    def learnt(text: str) -> bytes:
        if tokenizer is None or tokenizer.is_lossless:
            return text.encode("utf-8", "replace")
        one = Texts.of([text])
        return learnt_texts(one, tokenizer.encode_texts(one), tokenizer).data.tobytes()

    parts = [part for source in sources for part in source.parts()]
    found = _few_documents(parts, rule, documents, learnt) if rule.validation else []
    if not found:
        return rule, ""
    total = sum(document.characters for document in found)
    share = max(rule.validation, min(MIN_SHARE, MAX_RAISED_CHARACTERS / total))
    tail, held_out = _choose_tail(found, documents, learnt, min(max(1, round(total * share)), total - 1))
    return TailRule(share, tail), (
        f"the corpus has only {len(found):,} documents, too few to hold out whole ones: its last {held_out:,} "
        f"of {total:,} characters ({held_out / total:.0%}) are the validation split"
        if held_out
        else f"the corpus has only {len(found):,} documents, and no text that could be held out and occurs once: the "
        "validation split is empty"
    )


def _few_documents(parts: list[Part], rule: SplitRule, documents: DocumentRule, learnt: Learnt) -> list[_Document]:
    """Lists the documents of a corpus of which the rule leaves a split empty; returns none for any other corpus."""
    found, splits, seen = list[_Document](), set[str](), set[bytes]()
    for part in parts:
        for text in strings_of(documents.kept(texts_in(part), Counter())):
            if documents.deduplicate:
                if (digest := document_digest(text)) in seen:
                    continue
                seen.add(digest)
            data = learnt(text)
            splits.add(rule.split_of(data))
            found.append(_Document(part, len(text), document_digest(data)))
            if len(splits) == len(SPLITS) or len(found) > MAX_DOCUMENTS:
                return []
    return found


def _choose_tail(
    found: list[_Document], documents: DocumentRule, learnt: Learnt, characters: int
) -> tuple[dict[bytes, int], int]:
    """Chooses the last documents, and cuts the one at the border; returns the ``TailRule.tail`` and its characters.

    Skips what would be in both splits: documents that occur again, and a cut whose pieces do.
    """
    counts = Counter(document.digest for document in found)
    tail, held_out = dict[bytes, int](), 0
    for document in reversed(found):
        missing = characters - held_out
        if missing <= 0:
            break
        if counts[document.digest] > 1:
            continue
        if document.characters <= missing:
            tail[document.digest] = 0
            held_out += document.characters
            continue
        kept = strings_of(documents.kept(texts_in(document.part), Counter()))
        text = next(text for text in kept if document_digest(learnt(text)) == document.digest)
        cut = _cut(text, len(text) - missing)
        digests = {document_digest(learnt(piece)) for piece in (text[:cut], text[cut:])}
        if len(digests) == len(SPLITS) and counts.keys().isdisjoint(digests):
            tail[document.digest] = cut
            return tail, held_out + len(text) - cut
    return tail, held_out


def _cut(text: str, position: int) -> int:
    """Returns a position near the given one at which a paragraph, a line, a sentence or a word begins."""
    for separator in BREAKS:
        found = text.find(separator, position, position + (len(text) - position) // 2)
        if found >= 0:
            return found + len(separator)
    return position
