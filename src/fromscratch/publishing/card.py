"""The model card (``README.md``) of a published model, filled from the records of its run."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from fromscratch.config.loading import read_toml
from fromscratch.config.model import GPTConfig
from fromscratch.errors import DataError
from fromscratch.files import read_json_object, readable_dollars, readable_seconds
from fromscratch.formats.checkpoints import RAW
from fromscratch.formats.gpt2 import KINDS, not_gpt2
from fromscratch.formats.model_sources import LoadedModel
from fromscratch.runs.costs import cost_of
from fromscratch.runs.directory import RunDirectory

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
LOSS_CHART = "loss.png"
GENERATION_EXAMPLE = """generate = pipeline("text-generation", model="{repository}"{trust})
print(generate("Every effort moves you", max_new_tokens=40)[0]["generated_text"])"""
CLASSIFIER_EXAMPLE = """classify = pipeline("text-classification", model="{repository}"{trust}, truncation=True)
print(classify("Every effort moves you", top_k=None))"""
BASE_LIMITS = "A base model continues text. It is not trained to answer questions or to follow instructions. It"
CLASSIFIER_LIMITS = "A classifier gives every text one of its classes, also a text unlike those it was tuned on. It"
METRICS = ("loss", "perplexity", "bits_per_byte", "tokens")
MACHINE_KEYS = ("device_name", "world_size", "torch")


@dataclass(frozen=True)
class CardSettings:
    """Contents of the card that no run records."""

    license: str = "apache-2.0"
    title: str | None = None
    repository: str | None = None
    """``owner/name``, for the code example; None is the name of the folder."""


def write_card(folder: Path, loaded: LoadedModel, settings: CardSettings, format_name: str) -> None:
    """Writes ``README.md``, and copies the loss chart of the run if there is one."""
    run = loaded.run
    origin = _origin(run) if run else f"Converted from {loaded.source}"
    trust = ", trust_remote_code=True" if format_name == "custom" else ""
    example = CLASSIFIER_EXAMPLE if loaded.classes else GENERATION_EXAMPLE
    text = TEMPLATE.read_text("utf-8").format(
        title=settings.title or loaded.name,
        license=settings.license,
        pipeline="text-classification" if loaded.classes else "text-generation",
        kind="text-classification" if loaded.classes else "causal-lm",
        example=example.format(repository=settings.repository, trust=trust),
        limits=CLASSIFIER_LIMITS if loaded.classes else BASE_LIMITS,
        summary=f"{_purpose(loaded)} {origin} with fromscratch.",
        model=_rows(_model_properties(loaded)),
        sections=_sections(folder, run, step=loaded.step or 0) if run else "",
        datasets=_datasets(run) if run else "",
    )
    (folder / "README.md").write_text(text, "utf-8")


def _origin(run: RunDirectory) -> str:
    start = read_toml(run.config).get("train", {}).get("start_from")
    return f"Trained from {Path(start['model']).name}" if start else "Trained from random weights"


def _purpose(loaded: LoadedModel) -> str:
    if loaded.classes:
        return f"A classifier of texts, with the classes {', '.join(loaded.classes)}."
    if loaded.prompt_format:
        return "A language model tuned to respond to instructions, in the prompt format of its chat template."
    return "A base language model that continues text."


def _model_properties(loaded: LoadedModel) -> dict[str, Any]:
    config = loaded.config
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    if not isinstance(config, GPTConfig):
        return {
            "parameters": f"{parameters:,}",
            "architecture": config.kind,
            "context": "any length" if loaded.model.has_unlimited_context else f"{config.context_length:,} tokens",
            "vocabulary": f"{config.vocab_size:,} ids, tokenizer {loaded.tokenizer.name}",
            "steps": _steps(loaded),
        }
    return {
        "parameters": f"{parameters:,}",
        "architecture": f"{'GPT' if not_gpt2(config) else 'GPT-2'}: {config.num_layers} layers, "
        f"{config.num_heads} heads, {config.embedding_dim} wide",
        "slots": ", ".join(f"{slot} {getattr(config, slot).kind}" for slot in KINDS if slot != "head"),
        "context": f"{config.context_length:,} tokens",
        "vocabulary": f"{config.vocab_size:,} ids, tokenizer {loaded.tokenizer.name}",
        "head": "tied to the embedding" if config.tied_head else "a separate matrix",
        "query/key/value bias": "yes" if config.attention_bias else "no",
        "steps": _steps(loaded),
    }


def _steps(loaded: LoadedModel) -> str:
    steps = "unknown" if loaded.step is None else f"{loaded.step:,}"
    return f"{steps}; the weights are their average '{loaded.weights}'" if loaded.weights != RAW else steps


def _sections(folder: Path, run: RunDirectory, *, step: int) -> str:
    sections = {}
    if (run.charts / LOSS_CHART).is_file():
        shutil.copyfile(run.charts / LOSS_CHART, folder / LOSS_CHART)
        sections["Training"] = f"![Training loss]({LOSS_CHART})"
    if cost := _cost(run):
        sections["Cost"] = _table(("", ""), _rows(cost))
    evaluations = [_read(path) for path in sorted(run.evaluations.glob("*.json"))]
    if rows := [_evaluation_row(found) for found in evaluations if found.get("measure") == "loss"]:
        sections["Evaluations"] = _table(("split", *(name.replace("_", " ") for name in METRICS)), "\n".join(rows))
    if machine := _read(run.machine):
        sections["Machine"] = _table(("", ""), _rows({key: machine[key] for key in MACHINE_KEYS if machine.get(key)}))
    sections["Run file"] = "```toml\n" + tomli_w.dumps(_without_paths(read_toml(run.config_at(step)))) + "```"
    return "\n" + "\n".join(f"## {title}\n\n{content}\n" for title, content in sections.items())


def _cost(run: RunDirectory) -> dict[str, str]:
    """Returns the time by purpose and the dollars of all sessions; nothing where they were not recorded."""
    try:
        cost = cost_of(run)
    except DataError:
        return {}
    if not cost.is_complete:
        return {}
    devices = dict.fromkeys(f"{one.devices} x {one.device_name}" for one in cost.sessions)
    return {
        "sessions": f"{len(cost.sessions):,}",
        "devices": ", ".join(devices),
        "time": readable_seconds(cost.total_seconds),
        **{f"of it {purpose}": readable_seconds(seconds) for purpose, seconds in cost.seconds.items() if seconds},
        "dollars": "unknown" if cost.dollars is None else readable_dollars(cost.dollars),
    }


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """Shortens the path of a local store to its last part."""
    for table in ("data", "eval"):
        store = config.get(table, {}).get("store")
        if isinstance(store, str) and not store.startswith("hf:"):
            config[table]["store"] = Path(store).name
    return config


def _datasets(run: RunDirectory) -> str:
    store = read_toml(run.config)["data"]["store"]
    return f"datasets:\n- {store.removeprefix('hf://')}\n" if store.startswith("hf://") else ""


def _evaluation_row(found: dict[str, Any]) -> str:
    values = [found.get(key) for key in METRICS]
    shown = [f"{v:,.4f}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else "unknown" for v in values]
    split, weights = found.get("split", ""), found.get("weights")
    return f"| {f'{split}, weights {weights}' if weights else split} | {' | '.join(shown)} |"


def _rows(values: dict[str, Any]) -> str:
    return "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in values.items())


def _table(columns: tuple[str, ...], rows: str) -> str:
    return f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n{rows}"


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except DataError:
        return {}
