"""The model card: what a stranger must know before using a model, filled from what its run recorded."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from fromscratch.config.loading import read_toml
from fromscratch.config.model import GPTConfig
from fromscratch.errors import DataError
from fromscratch.files import read_json_object
from fromscratch.formats.model_sources import LoadedModel
from fromscratch.runs.directory import RunDirectory

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
PICTURE = "loss.png"
SHOWN_FACTS = ("loss", "perplexity", "bits_per_byte", "tokens")


@dataclass(frozen=True)
class CardFacts:
    """What no run records."""

    license: str = "apache-2.0"
    title: str | None = None
    repository: str | None = None
    """``owner/name``, for the example of loading."""
    description: str | None = None


def write_card(folder: Path, loaded: LoadedModel, facts: CardFacts, format_name: str) -> None:
    """Writes ``README.md``, and beside it the loss curve where the run has one."""
    run = loaded.run
    sections = "" if run is None else _sections(folder, run, step=loaded.step or 0)
    datasets = _datasets(run)
    text = TEMPLATE.read_text("utf-8").format(
        title=facts.title or loaded.name,
        license=facts.license,
        what_it_is=facts.description or _what_it_is(loaded),
        facts=_table(_facts(loaded)),
        loading=_loading(facts.repository or folder.name.lstrip("."), format_name),
        sections=sections,
        datasets=datasets,
    )
    (folder / "README.md").write_text(text, "utf-8")


def _what_it_is(loaded: LoadedModel) -> str:
    origin = "Trained from random weights" if loaded.run else f"Converted from {loaded.source}"
    return f"A base language model that continues text. {origin} with fromscratch."


def _facts(loaded: LoadedModel) -> dict[str, Any]:
    config = loaded.config
    assert isinstance(config, GPTConfig)  # the only kind that has an export
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    return {
        "parameters": f"{parameters:,}",
        "architecture": f"GPT-2: {config.num_layers} layers, {config.num_heads} heads, {config.embedding_dim} wide",
        "slots": ", ".join(f"{slot} {getattr(config, slot).kind}" for slot in ("attention", "position", "norm")),
        "context": f"{config.context_length:,} tokens",
        "vocabulary": f"{config.vocab_size:,} ids, tokenizer {loaded.tokenizer.name}",
        "head": "tied to the embedding" if config.tied_head else "a matrix of its own",
        "query/key/value bias": "yes" if config.attention_bias else "no",
        "steps": "unknown" if loaded.step is None else f"{loaded.step:,}",
    }


def _loading(name: str, format_name: str) -> str:
    trust = ", trust_remote_code=True" if format_name == "custom" else ""
    return (
        "from transformers import pipeline\n\n"
        f'generate = pipeline("text-generation", model="{name}"{trust})\n'
        'print(generate("Every effort moves you", max_new_tokens=40)[0]["generated_text"])'
    )


def _sections(folder: Path, run: RunDirectory, *, step: int) -> str:
    parts = []
    picture = run.charts / PICTURE
    if picture.is_file():
        shutil.copyfile(picture, folder / PICTURE)
        parts.append(f"## Training\n\n![Loss while training]({PICTURE})\n")
    costs = _read(run.path / "cost.json")
    if costs:
        parts.append("## Cost\n\n| | |\n|---|---|\n" + _table(costs) + "\n")
    evaluations = [_read(path) for path in sorted(run.evaluations.glob("*.json"))] if run.evaluations.is_dir() else []
    rows = [_evaluation_row(found) for found in evaluations if found.get("measure") == "loss"]
    if rows:
        head = (
            "| split | " + " | ".join(SHOWN_FACTS).replace("_", " ") + " |\n" + "|---" * (len(SHOWN_FACTS) + 1) + "|\n"
        )
        parts.append("## Evaluations\n\n" + head + "\n".join(rows) + "\n")
    config = read_toml(run.config_at(step))
    machine = _read(run.machine)
    if machine:
        shown = {key: machine.get(key) for key in ("device_name", "world_size", "torch") if machine.get(key)}
        parts.append("## Machine\n\n| | |\n|---|---|\n" + _table(shown) + "\n")
    parts.append("## Run file\n\n```toml\n" + tomli_w.dumps(_without_paths(config)) + "```\n")
    return "\n" + "\n".join(parts)


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """The run file with a store on this computer named by its last part alone."""
    for table in ("data", "eval"):
        store = config.get(table, {}).get("store")
        if isinstance(store, str) and not store.startswith("hf:"):
            config[table]["store"] = Path(store).name
    return config


def _datasets(run: RunDirectory | None) -> str:
    store = read_toml(run.config)["data"]["store"] if run else ""
    return f"datasets:\n- {store.removeprefix('hf://')}\n" if store.startswith("hf://") else ""


def _evaluation_row(found: dict[str, Any]) -> str:
    values = [found.get(key) for key in SHOWN_FACTS]
    shown = [f"{v:,.4f}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else "unknown" for v in values]
    return f"| {found.get('split', '')} | {' | '.join(shown)} |"


def _table(facts: dict[str, Any]) -> str:
    return "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in facts.items())


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except DataError:
        return {}
