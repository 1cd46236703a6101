"""Holds out the end of a small corpus, in which a hash would hold out no document, or all of them."""

from collections import Counter
from collections.abc import Sequence

from fromscratch.data.documents import TRAIN, DocumentRule, HeldOutText, SplitRule, TailRule
from fromscratch.sources.base import Document, InMemory, Source, documents_in

MAX_BYTES = 16 << 20  # a larger corpus has enough documents
MIN_SHARE = 0.1
BREAKS = ("\n\n", "\n", ". ", " ")


def hold_out_tail(
    sources: Sequence[Source], rule: SplitRule, documents: DocumentRule
) -> tuple[Sequence[Source], SplitRule, str]:
    """Returns sources and rule of a preparation, with a held-out tail where the rule leaves a split empty.

    Returns:
        The sources, the rule, and a sentence for the user; it is empty where nothing was changed.
    """
    parts = [part for source in sources for part in source.parts()]
    if rule.validation == 0 or isinstance(rule, TailRule) or sum(part.text_bytes for part in parts) > MAX_BYTES:
        return sources, rule, ""
    corpora = [[text for part in source.parts() for text in documents_in(part)] for source in sources]
    splits = Counter(rule.split_of(text) for texts in corpora for text in documents.kept(texts, Counter()))
    if len(splits) == len((TRAIN, "validation")) or not splits:
        return sources, rule, ""
    share = max(rule.validation, MIN_SHARE)
    total = sum(len(text) for texts in corpora for text in texts if isinstance(text, str))
    held_out = _mark_tail(corpora, round(total * share))
    marked = [InMemory(source.description, tuple(texts)) for source, texts in zip(sources, corpora, strict=True)]
    note = (
        f"the corpus has only {splits.total():,} documents, too few to hold out whole ones: its last {held_out:,} "
        f"of {total:,} characters ({held_out / total:.0%}) are the validation split"
    )
    return marked, TailRule(share), note


def _mark_tail(corpora: list[list[Document]], characters: int) -> int:
    """Replaces the last texts by ``HeldOutText``, and cuts the one at the border in two; returns their characters."""
    held_out = 0
    for texts in reversed(corpora):
        for index in range(len(texts) - 1, -1, -1):
            missing, text = characters - held_out, texts[index]
            if missing <= 0:
                return held_out
            if not isinstance(text, str):
                continue
            cut = 0 if len(text) <= missing else _cut(text, len(text) - missing)
            tail = HeldOutText(text[cut:])
            texts[index : index + 1] = [text[:cut], tail] if cut else [tail]
            held_out += len(tail)
    return held_out


def _cut(text: str, position: int) -> int:
    """Returns a position near the given one at which a paragraph, a line, a sentence or a word begins."""
    for separator in BREAKS:
        found = text.find(separator, position, position + (len(text) - position) // 2)
        if found >= 0:
            return found + len(separator)
    return position
