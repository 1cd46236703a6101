"""``fromscratch data``: from texts to token stores."""

from pathlib import Path
from typing import Annotated

import typer

from fromscratch.cli.output import JsonFlag, QuietFlag, note, print_json, print_table

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Prepare, check and read token stores.")


@app.callback()
def common() -> None:
    """Prepare, check and read token stores."""


@app.command()
def prepare(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Text files, folders, or python-docs[:package,...].")
    ],
    out: Annotated[Path, typer.Option(help="The store to make.")],
    tokenizer: Annotated[str, typer.Option(help="gpt2, bytes, train:N, or the path of a tokenizer.")] = "gpt2",
    validation: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Share of documents held out, chosen by a hash of their text.")
    ] = 0.01,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Turn texts into a token store.

    A preparation that was interrupted goes on when the same command is given again.

    Example: fromscratch data prepare my-texts/ --out my-store --tokenizer train:8192
    """
    from fromscratch.data.prepare import SplitRule, prepare_store, training_documents
    from fromscratch.data.sources import open_source
    from fromscratch.tokenizers.loading import open_tokenizer

    rule = SplitRule(validation)
    opened = [open_source(word) for word in sources]
    chosen = open_tokenizer(tokenizer, corpus=lambda: training_documents(opened, rule))
    store = prepare_store(
        opened,
        chosen,
        out,
        rule=rule,
        on_part=lambda name, tokens: note(f"{name}: {tokens:,} tokens", quiet=quiet),
    )
    if as_json:
        print_json({"store": str(out), **store.manifest.model_dump()})
        return
    rows = [("store", str(out)), ("tokenizer", f"{chosen.name}, {chosen.vocab_size:,} ids")]
    for name, split in store.manifest.splits.items():
        rows.append((name, f"{split.documents:,} documents, {split.tokens:,} tokens, {split.bytes:,} bytes"))
    rows.append(("skipped", f"{store.manifest.skipped.get('empty', 0):,} empty documents"))
    print_table(rows)
