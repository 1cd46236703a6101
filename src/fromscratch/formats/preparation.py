"""Texts to a token store: opens sources and tokenizer by name, and says what a user should know. Needs no torch."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fromscratch.data.documents import SPLITS, DocumentRule, SplitRule, all_documents, training_documents
from fromscratch.data.engines import Engine, InProcess
from fromscratch.data.prepare import PreparationObserver, prepare_store
from fromscratch.data.store import TokenStore
from fromscratch.data.tail import hold_out_tail
from fromscratch.sources import open_source
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.tokenizers.loading import open_tokenizer

Tell = Callable[[str], None]


def prepare(
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    tokenizer: str | Tokenizer = "gpt2",
    validation: float = 0.01,
    text_column: str = "text",
    deduplicate: bool = False,
    min_characters: int = 1,
    skip_bad: bool = False,
    make_engine: Callable[[Tokenizer], Engine] = InProcess,
    observer: PreparationObserver | None = None,
    tell: Tell = print,
) -> TokenStore:
    """Turns texts into a token store, continues an interrupted preparation, or opens the finished store.

    Args:
        sources: files, folders, ``whole:FILE``, ``hf://owner/name``, or ``python-docs``.
        tokenizer: ``gpt2``, ``bytes``, ``bytes:occurring``, ``train:N`` or a path; or a tokenizer, such as
            ``Model.tokenizer``.
        validation: share of documents held out.
        make_engine: what runs the work; by default the threads of this process.
        tell: gets sentences about what was decided or left out.
    """
    names = [sources] if isinstance(sources, str | Path) else sources
    rule, kept = SplitRule(validation), DocumentRule(min_characters, deduplicate, skip_bad)
    opened = [open_source(str(name), text_column=text_column) for name in names]
    left_out = [source.left_out() for source in opened]
    for line in filter(None, left_out):
        tell(line)
    chosen = tokenizer
    if isinstance(chosen, str):
        chosen = open_tokenizer(
            chosen,
            corpus=lambda: training_documents(opened, hold_out_tail(opened, rule, kept)[0], kept),
            texts=lambda: all_documents(opened, kept),
        )
    split_rule, held_out = hold_out_tail(opened, rule, kept, chosen)
    if held_out:
        tell(held_out)
    store = prepare_store(
        opened, chosen, Path(out), rule=split_rule, documents=kept, engine=make_engine(chosen), observer=observer
    )
    for line in notes_on(store):
        tell(line)
    return store


def notes_on(store: TokenStore) -> Iterator[str]:
    """Yields sentences about a prepared store that its user should know."""
    manifest = store.manifest
    if manifest.text_columns is None:
        yield (
            f"{store.path}: a finished store of an earlier version, which did not record the text column and the "
            "content of its files, so it was not compared with them; if they changed, choose another --out"
        )
    if manifest.split_rule.get("by") == "document" and manifest.split_rule["validation"]:
        empty = [name for name in SPLITS if not manifest.splits[name].tokens]
        yield from (f"{store.path}: the split '{name}' is empty; choose another --validation" for name in empty)
    for reason, parts in manifest.fallbacks.items():
        yield f"{parts:,} parts were encoded by the slower library of the tokenizer, with the same ids: {reason}"
    if altered := manifest.altered:
        total = sum(split.documents or 0 for split in manifest.splits.values())
        yield (
            f"tokenizer {manifest.tokenizer['name']} alters texts: {altered:,} of {total:,} documents "
            f"({altered / total:.1%}) cannot be given back; bits per byte on this store are not comparable with those "
            "of other tokenizers"
        )
