"""The dataset card of a token store on the Hub: contents, origin, use."""

from fromscratch.data.store import Manifest

LIBRARY = "fromscratch"


def dataset_card(manifest: Manifest, repository: str, *, licence: str | None) -> str:
    """Writes a README with the metadata that the Hub reads."""
    tokenizer = manifest.tokenizer
    rows = "\n".join(
        f"| {name} | {_number(split.documents)} | {split.tokens:,} | {_number(split.bytes)} | {len(split.shards):,} |"
        for name, split in manifest.splits.items()
    )
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in manifest.skipped.items() if count) or "none"
    metadata = [f"library_name: {LIBRARY}", "tags:", f"- {LIBRARY}", "- tokenized", "- token-store"]
    metadata += [f"license: {licence}"] if licence else []
    return "\n".join(
        [
            "---",
            *metadata,
            "---",
            "",
            f"# {repository.rpartition('/')[2]}",
            "",
            f"Text as token ids, made by `{LIBRARY} data prepare`.",
            "",
            "| split | documents | tokens | bytes of text | shards |",
            "|---|---|---|---|---|",
            rows,
            "",
            f"- Source: {', '.join(f'`{source}`' for source in manifest.source)}",
            f"- Tokenizer: {tokenizer['name']}, {tokenizer['vocab_size']:,} ids, end-of-text {tokenizer['end_of_text']}"
            " (in `tokenizer/`)",
            f"- Held out: {_split_rule(manifest)}",
            f"- Documents skipped: {skipped}",
            f"- Each shard is a safetensors file with one 1-D tensor, `tokens` ({manifest.dtype}); every document is "
            "followed by the end-of-text id. `manifest.json` lists the shards in order with their SHA-256.",
            "",
            "```",
            f"{LIBRARY} data pull hf://{repository} --out my-store",
            "```",
            "",
            f'or, in a run file of `{LIBRARY} train`: `store = "hf://{repository}"`.',
            "",
        ]
    )


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _split_rule(manifest: Manifest) -> str:
    share = manifest.split_rule.get("validation")
    if manifest.split_rule.get("by") == "tail":
        return "the end of the text, because there are few documents"
    return f"{share:.2%} of the documents, chosen by a hash of their text" if isinstance(share, float) else "unknown"
