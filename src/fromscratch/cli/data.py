"""``fromscratch data``: from texts to token stores."""

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fromscratch.cli import data_stores
from fromscratch.cli.options import JsonFlag, QuietFlag
from fromscratch.cli.output import note, print_json, print_table

if TYPE_CHECKING:
    from fromscratch.cli.preparation import PreparationProgress
    from fromscratch.data.engines import Engine
    from fromscratch.data.store import TokenStore
    from fromscratch.sources import Source
    from fromscratch.tokenizers.base import Tokenizer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Prepare, check, read and share token stores.")


class EngineName(StrEnum):
    """Where the work runs."""

    LOCAL = "local"
    RAY = "ray"


@app.callback()
def common() -> None:
    """Prepare, check, read and share token stores."""


@app.command()
def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Files or folders of parquet, JSON Lines or text; hf://owner/name[?name=CONFIG]; "
            "or python-docs[:package,...].",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The store to make.")],
    tokenizer: Annotated[str, typer.Option(help="gpt2, bytes, train:N, or the path of a tokenizer.")] = "gpt2",
    validation: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Share of documents held out, chosen by a hash of their text.")
    ] = 0.01,
    text_column: Annotated[str, typer.Option(help="Column (parquet) or key (JSON Lines) of the text.")] = "text",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one per core by default.")] = None,
    engine: Annotated[EngineName, typer.Option(help="This machine, or the Ray cluster.")] = EngineName.LOCAL,
    deduplicate: Annotated[bool, typer.Option("--deduplicate", help="Keep one of identical documents.")] = False,
    min_characters: Annotated[int, typer.Option(min=1, help="Leave shorter documents out.")] = 1,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave damaged input out and count it.")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Turn texts into a token store.

    The same command continues an interrupted preparation. Interruptions and the number of workers do
    not change the store.

    Example: fromscratch data prepare my-texts/ --out my-store --tokenizer train:8192
    """
    from fromscratch.cli.preparation import PreparationProgress
    from fromscratch.data.documents import DocumentRule, SplitRule
    from fromscratch.data.prepare import prepare_store
    from fromscratch.data.tail import hold_out_tail
    from fromscratch.sources import open_source

    rule, kept = SplitRule(validation), DocumentRule(min_characters, deduplicate, skip_bad)
    opened: Sequence[Source] = [open_source(name, text_column=text_column) for name in sources]
    left_out = [source.left_out() for source in opened]
    opened, rule, held_out = hold_out_tail(opened, rule, kept)
    for line in filter(None, (*left_out, held_out)):
        note(line)
    chosen = _open_tokenizer(tokenizer, opened, rule, kept)
    progress = PreparationProgress(quiet=quiet)
    note(f"preparing {out} with tokenizer {chosen.name} ({chosen.vocab_size:,} ids)", quiet=quiet)
    try:
        store = prepare_store(
            opened, chosen, out, rule=rule, documents=kept, engine=_engine(engine, workers), observer=progress
        )
    except KeyboardInterrupt:
        note(f"stopped; finished parts are kept in {out}, and the same command continues", quiet=quiet)
        raise
    _tell_altered(store)
    facts = summary(store, progress)
    if as_json:
        print_json(facts)
    else:
        print_table(_rows(facts))


def _tell_altered(store: "TokenStore") -> None:
    if altered := store.manifest.altered:
        total = sum(split.documents or 0 for split in store.manifest.splits.values())
        note(
            f"tokenizer {store.manifest.tokenizer['name']} alters texts: {altered:,} of {total:,} documents "
            f"({altered / total:.1%}) cannot be given back; bits per byte on this store are not comparable with those "
            "of other tokenizers"
        )


def _engine(name: EngineName, workers: int | None) -> "Engine":
    from fromscratch.data.engines import RayCluster, WorkerProcesses
    from fromscratch.tokenizers.loading import load

    if name is EngineName.RAY:
        return RayCluster(workers, load)
    return WorkerProcesses(workers or _cores(), load)


def _cores() -> int:
    """Returns the number of cores that this process may use; in a container it can be below the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _open_tokenizer(name: str, opened: "Sequence[Source]", rule: Any, kept: Any) -> "Tokenizer":
    from fromscratch.data.documents import training_documents
    from fromscratch.tokenizers.loading import open_tokenizer

    return open_tokenizer(name, corpus=lambda: training_documents(opened, rule, kept))


def summary(store: "TokenStore", progress: "PreparationProgress") -> dict[str, Any]:
    """Describes the store, and the speed of this session."""
    manifest = store.manifest
    sums = {
        key: sum(getattr(split, key) for split in manifest.splits.values()) for key in ("documents", "tokens", "bytes")
    }
    is_timed = progress.parts > 0
    return {
        "store": str(store.path),
        **sums,
        "tokens_per_byte": sums["tokens"] / sums["bytes"],
        "skipped": manifest.skipped,
        "altered": manifest.altered,
        "split_rule": manifest.split_rule,
        "splits": {name: split.model_dump(exclude={"shards"}) for name, split in manifest.splits.items()},
        "shards": sum(len(split.shards) for split in manifest.splits.values()),
        "tokenizer": manifest.tokenizer,
        "source": manifest.source,
        "seconds": progress.seconds if is_timed else None,
        "bytes_per_second": progress.text_bytes / progress.seconds if is_timed else None,
        "tokens_per_second": progress.tokens / progress.seconds if is_timed else None,
    }


def _rows(facts: dict[str, Any]) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = [("store", facts["store"])]
    rows.append(("tokenizer", f"{facts['tokenizer']['name']}, {facts['tokenizer']['vocab_size']:,} ids"))
    rows += [(key, facts[key]) for key in ("documents", "tokens", "bytes")]
    rows.append(("tokens per byte", facts["tokens_per_byte"]))
    for name, split in facts["splits"].items():
        rows.append((name, f"{split['documents']:,} documents, {split['tokens']:,} tokens, {split['bytes']:,} bytes"))
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in facts["skipped"].items())
    rows.append(("skipped", skipped or "none"))
    if facts["seconds"] is None:
        return [*rows, ("time", "nothing was left to do")]
    speed = f"{facts['bytes_per_second'] / 1e6:,.1f} MB/s, {facts['tokens_per_second']:,.0f} tokens/s"
    return [*rows, ("time", f"{facts['seconds']:,.1f} s, {speed}")]


data_stores.add_to(app)
