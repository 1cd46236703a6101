"""``fromscratch data``: from texts to token stores."""

import os
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

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Prepare, check, read and share token stores.")


class EngineName(StrEnum):
    """Where the work runs."""

    LOCAL = "local"
    RAY = "ray"


@app.command()
def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Files or folders of parquet, JSON Lines or text; whole:FILE, a text file as one document; "
            "hf://owner/name[?name=CONFIG]; "
            "or python-docs[:package,...].",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The store to make.")],
    tokenizer: Annotated[
        str, typer.Option(help="gpt2, bytes, bytes:occurring, train:N, or the path of a tokenizer.")
    ] = "gpt2",
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
    from fromscratch.formats.preparation import prepare as prepare_texts

    progress = PreparationProgress(quiet=quiet)
    note(f"preparing {out} with tokenizer {tokenizer}", quiet=quiet)
    try:
        store = prepare_texts(
            sources,
            out,
            tokenizer=tokenizer,
            validation=validation,
            text_column=text_column,
            deduplicate=deduplicate,
            min_characters=min_characters,
            skip_bad=skip_bad,
            make_engine=lambda _tokenizer: _engine(engine, workers),
            observer=progress,
            tell=note,
        )
    except KeyboardInterrupt:
        note(f"stopped; finished parts are kept in {out}, and the same command continues", quiet=quiet)
        raise
    facts = summary(store, progress)
    if as_json:
        print_json(facts)
    else:
        print_table(_rows(facts))


def _engine(name: EngineName, workers: int | None) -> "Engine":
    from fromscratch.data.engines import RayCluster, WorkerProcesses
    from fromscratch.tokenizers.loading import load

    if name is EngineName.RAY:
        return RayCluster(workers, load)
    return WorkerProcesses(workers or _cores(), load)


def _cores() -> int:
    """Returns the number of cores that this process may use; in a container it can be below the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
