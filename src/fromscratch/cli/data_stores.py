"""``fromscratch data stats|verify|show|push|pull``: commands for existing token stores."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fromscratch.cli.options import JsonFlag, PictureOption, QuietFlag
from fromscratch.cli.output import note, print_json, print_table

if TYPE_CHECKING:
    from fromscratch.data.statistics import Statistics
    from fromscratch.data.store import TokenStore

StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="A folder, or hf://owner/name.")]


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    for command in (stats, verify, show, push, pull):
        app.command()(command)


def stats(
    what: Annotated[
        list[str], typer.Argument(metavar="STORE|SOURCE...", help="A store, or sources as for 'data prepare'.")
    ],
    context: Annotated[int, typer.Option(min=1, help="Context of the model, in tokens.")] = 1024,
    split: Annotated[str | None, typer.Option(help="One split of the store; all by default.")] = None,
    tokenizer: Annotated[str, typer.Option(help="For sources: the tokenizer to count with.")] = "gpt2",
    text_column: Annotated[str, typer.Option(help="For sources: column or key of the text.")] = "text",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="For sources: leave damaged input out.")] = False,
    top: Annotated[int, typer.Option(min=0, help="How many of the most frequent tokens to list.")] = 10,
    picture: PictureOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show document lengths and the most frequent tokens.

    Training here packs documents one after another and loses no token. Programs that crop each document at the
    context lose the rest; the share is shown for comparison.

    Example: fromscratch data stats my-store --context 1024 --picture lengths.png
    """
    from fromscratch.data.statistics import source_statistics, store_statistics
    from fromscratch.data.statistics_picture import draw_lengths
    from fromscratch.formats.stores import tokenizer_of
    from fromscratch.tokenizers.loading import open_tokenizer

    if len(what) == 1 and (store := _store_if_one(what[0])) is not None:
        names = [split] if split else list(store.manifest.splits)
        found = store_statistics(store, names, context=context, top=top)
        opened = tokenizer_of(store)
    else:
        from fromscratch.data.documents import DocumentRule
        from fromscratch.sources import open_source

        opened = open_tokenizer(tokenizer)
        sources = [open_source(name, text_column=text_column) for name in what]
        for left_out in filter(None, (source.left_out() for source in sources)):
            note(left_out)
        rule = DocumentRule(skip_bad=skip_bad)
        found = source_statistics(sources, opened, context=context, top=top, documents=rule)
    if picture is not None:
        draw_lengths(found, picture, title=", ".join(Path(name).name for name in what))
    for entry in found.frequent_tokens:
        is_end = entry["id"] == opened.end_of_text
        entry["text"] = "<|endoftext|>" if is_end else opened.decode([entry["id"]])
    facts = {"name": what[0] if len(what) == 1 else what, **asdict(found), "picture": picture and str(picture)}
    if as_json:
        print_json(facts)
    else:
        print_table(_rows(found, picture))


def _store_if_one(name: str) -> "TokenStore | None":
    """Opens the store of that name; returns None where the name is of a source."""
    from fromscratch.data.plain_store import SPLIT_FILES, is_plain_store
    from fromscratch.files import MANIFEST
    from fromscratch.formats.stores import open_named_store
    from fromscratch.hub.downloads import list_files
    from fromscratch.hub.names import dataset_name, has_hub_prefix
    from fromscratch.sources.hub import PARAMETERS

    if has_hub_prefix(name):
        dataset = dataset_name(name, allowed=PARAMETERS)
        listed = set(list_files(dataset))
        is_store = "name" not in dataset.parameters and (MANIFEST in listed or set(SPLIT_FILES.values()) <= listed)
    else:
        is_store = (Path(name) / MANIFEST).is_file() or is_plain_store(Path(name))
    return open_named_store(name) if is_store else None


def _rows(found: "Statistics", picture: Path | None) -> list[tuple[str, Any]]:
    def percent(share: float | None) -> str | None:
        return None if share is None else f"{share:.2%}"

    quantiles = ", ".join(f"{name} {length:,}" for name, length in found.length_quantiles.items())
    rows: list[tuple[str, Any]] = [
        ("documents", found.documents),
        ("tokens", found.tokens),
        ("bytes of text", found.bytes),
        ("tokens per byte", found.tokens_per_byte),
        ("mean length", found.mean_length and f"{found.mean_length:,.1f} tokens"),
        ("shortest, longest", f"{found.shortest or 0:,}, {found.longest or 0:,} tokens"),
        ("length quantiles", quantiles),
        (f"longer than {found.context:,}", percent(found.documents_over_context)),
        ("lost by packing", "nothing: training here packs documents one after another"),
        (f"lost by cropping at {found.context:,}", f"{percent(found.tokens_lost_by_cropping)}, in programs that crop"),
    ]
    for number, entry in enumerate(found.frequent_tokens, start=1):
        shown = f"{entry['id']:>6} {entry['text']!r:<16} {entry['count']:,} ({entry['share']:.2%})"
        rows.append((f"frequent token {number}", shown))
    return [*rows, ("picture", str(picture))] if picture else rows


def verify(store: StoreArgument, as_json: JsonFlag = False, quiet: QuietFlag = False) -> None:
    """Check every byte of a store: checksums, ids, end-of-text, and that no document is in both splits.

    Exits with code 3 where there is a problem.

    Example: fromscratch data verify my-store
    """
    from fromscratch.data.verify import verify_store
    from fromscratch.errors import EXIT_DATA
    from fromscratch.formats.stores import open_named_store, tokenizer_of

    opened = open_named_store(store)
    tokenizer_of(opened)
    found = verify_store(opened)
    for warning in found.warnings:
        note(f"warning: {warning}", quiet=quiet)
    for problem in found.problems:
        note(f"error: {problem}")
    if as_json:
        print_json({"store": store, "valid": not found.problems, **asdict(found)})
    elif not found.problems:
        print_table([("store", store), ("valid", True), ("shards", found.shards), ("tokens", found.tokens)])
    if found.problems:
        raise typer.Exit(EXIT_DATA)


def show(
    store: StoreArgument,
    start: Annotated[int, typer.Option(min=0, help="First token.")] = 0,
    tokens: Annotated[int, typer.Option(min=1, help="How many.")] = 200,
    split: Annotated[str, typer.Option(help="Which split.")] = "train",
    plain: Annotated[bool, typer.Option("--plain", help="The text alone, without token boundaries.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Print a piece of a store as text.

    Example: fromscratch data show my-store --start 1000 --tokens 50
    """
    from fromscratch.data.show import plain_text, show_tokens, text_with_boundaries
    from fromscratch.formats.stores import open_named_store, tokenizer_of

    opened = open_named_store(store)
    tokenizer = tokenizer_of(opened)
    shown = show_tokens(
        opened.split(split),
        tokenizer.token_bytes(),
        start=start,
        tokens=tokens,
        end_of_text=tokenizer.end_of_text,
    )
    if as_json:
        listed = [{"id": token.id, "text": token.text} for token in shown]
        print_json(
            {"store": store, "split": split, "start": start, "tokens": listed, "text": plain_text(shown, tokenizer)}
        )
    else:
        print(plain_text(shown, tokenizer) if plain else text_with_boundaries(shown))


def push(
    store: StoreArgument,
    to: Annotated[str, typer.Argument(metavar="hf://OWNER/NAME", help="The dataset to make or add to.")],
    public: Annotated[bool, typer.Option("--public", help="Visible to everybody; private by default.")] = False,
    licence: Annotated[str | None, typer.Option("--license", help="Licence of the text, for the card.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Upload a store to the Hugging Face Hub, with a dataset card. HF_TOKEN, or 'hf auth login', gives access.

    Example: fromscratch data push my-store hf://me/my-store
    """
    from fromscratch.data.card import dataset_card
    from fromscratch.data.hub_store import push_store
    from fromscratch.formats.stores import open_named_store
    from fromscratch.hub.names import dataset_name

    opened = open_named_store(store)
    card = dataset_card(opened.manifest, dataset_name(to).repository, licence=licence)
    url = push_store(opened, to, card=card, private=not public)
    facts = {"store": store, "url": url, "private": not public}
    print_json(facts) if as_json else print_table(list(facts.items()))


def pull(
    source: Annotated[str, typer.Argument(metavar="hf://OWNER/NAME", help="The dataset to download.")],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    as_json: JsonFlag = False,
) -> None:
    """Download a store from the Hugging Face Hub and verify it.

    The same command continues an interrupted download.

    Example: fromscratch data pull hf://gpjt/fineweb-gpt2-tokens --out fineweb-gpt2
    """
    from fromscratch.data.hub_store import pull_store

    opened = pull_store(source, out)
    facts = {"store": str(out), **{name: split.tokens for name, split in opened.manifest.splits.items()}}
    print_json(facts) if as_json else print_table(list(facts.items()))
