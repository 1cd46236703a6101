"""The Python interface of fine-tuning: instructions, answers, classifiers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from fromscratch.api import RUNS_DIR, Model, Overrides, Run, override_items, train_planned
from fromscratch.config.prompts import PromptFormat
from fromscratch.errors import UsageError
from fromscratch.files import read_json_object
from fromscratch.finetuning.answers import AnswersReport
from fromscratch.finetuning.answers import respond as answer
from fromscratch.finetuning.classifier_report import classify_texts
from fromscratch.finetuning.prompts import prompt_format_for, read_prompt_format
from fromscratch.finetuning.records import read_records
from fromscratch.formats.classifiers import REPORT_FILE
from fromscratch.formats.model_sources import LoadedModel, open_model
from fromscratch.formats.preparation import Tell
from fromscratch.generation.generate import Settings
from fromscratch.generation.sampling import Sampling
from fromscratch.machine.hardware import find_hardware
from fromscratch.publishing.publish import Destination, PublishReport, publish_model
from fromscratch.session.billing import Billing
from fromscratch.session.placement import MachineOptions
from fromscratch.session.tuning import plan_tuning, tuning_config
from fromscratch.session.tuning_values import (
    CLASSIFY,
    INSTRUCT,
    lora_setting,
    tuning_name,
    tuning_values,
)
from fromscratch.training.observers import Observer

__all__ = ["Classifier", "finetune_classify", "finetune_instruct", "load_classifier", "respond"]

Trained = Literal["head", "last-block", "all", "lora"]


def finetune_instruct(
    model: str | Path,
    data: str | Path,
    *,
    name: str | None = None,
    runs_dir: str | Path = RUNS_DIR,
    prompt: str | PromptFormat = "alpaca",
    mask_prompt: bool = False,
    epochs: int = 5,
    global_batch: int = 8,
    learning_rate: float = 5e-5,
    patience: int = 2,
    evaluate_every: int | None = None,
    seed: int = 42,
    dropout: float | None = None,
    lora: int | None = None,
    train_examples: int | None = None,
    overrides: Overrides = (),
    device: str | None = None,
    micro_batch: int | None = None,
    compile_model: bool | None = None,
    activation_checkpointing: bool = False,
    deterministic: bool | None = None,
    stop_after: int | None = None,
    fresh: bool = False,
    allowed_changes: Sequence[str] = (),
    dollars_per_hour: float | None = None,
    observers: Sequence[Observer] = (),
    tell: Tell = print,
) -> Run:
    """Teaches a model to respond to instructions, or continues a stopped run, as ``fromscratch finetune instruct``.

    Args:
        model: as for ``load_model``.
        data: a JSON list or JSON Lines of records.
        name: name of the run; by default ``MODEL-instruct``.
        prompt: ``alpaca``, ``phi3``, ``chatml``, a template with ``{instruction}``, a TOML file, or a format.
        mask_prompt: whether only the responses are learned.
        patience: evaluations in a row without a lower validation loss that end the run; 0 never.
        evaluate_every: steps between evaluations; by default one epoch.
        dropout: share of activations dropped; by default that of the model's training.
        lora: rank of low-rank additions, which are then all that is trained.
        train_examples: train on so many records of the training part.
        overrides, and from ``device`` on: as for ``train``.
    """
    billing = Billing(dollars_per_hour)
    form = prompt.model_dump() if isinstance(prompt, PromptFormat) else read_prompt_format(prompt)
    task = {
        **{"kind": "instruct", "prompt": form, "mask_prompt": mask_prompt, "patience": patience, "dropout": dropout},
        **{"train_examples": train_examples, "lora": lora_setting(lora)},
    }
    batches = {"seed": seed, "global_batch": global_batch, "evaluate_every": evaluate_every}
    values = tuning_values(model, data, task, batches, epochs=epochs, learning_rate=learning_rate)
    planned = plan_tuning(tuning_config(values, override_items(overrides), INSTRUCT), {}, INSTRUCT)
    path = Path(runs_dir) / tuning_name(name, model, "instruct")
    machine = MachineOptions(device, micro_batch, compile_model, activation_checkpointing, deterministic)
    session: dict[str, Any] = {"stop_after": stop_after, "fresh": fresh, "allowed_changes": allowed_changes}
    return train_planned(planned, path, machine, observers, tell, billing=billing, **session)


def respond(
    model: str | Path | Model,
    data: str | Path,
    out: str | Path,
    *,
    prompt: str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
    batch: int = 16,
    device: str | None = None,
) -> AnswersReport:
    """Answers every instruction of a file that has no answer in ``out`` yet, as ``fromscratch respond``.

    Args:
        model: a model, or what ``load_model`` takes.
        data: a JSON list or JSON Lines of records.
        out: the answers, a JSON list of records with ``model_response``.
        prompt: the prompt format; by default that of the model's tuning.
        temperature: 0 selects the most probable token each time.
        batch: number of prompts at a time.
    """
    loaded = model.loaded if isinstance(model, Model) else open_model(str(model), find_hardware(device))
    settings = Settings(max_new_tokens, Sampling(temperature=temperature, top_k=top_k), seed)
    form = prompt_format_for(loaded, prompt)
    return answer(loaded, read_records(Path(data)), Path(out), form, settings, batch=batch)


def finetune_classify(
    model: str | Path,
    data: str | Path,
    *,
    name: str | None = None,
    runs_dir: str | Path = RUNS_DIR,
    text_column: str | None = None,
    label_column: str | None = None,
    train: Trained = "all",
    balance: Literal["undersample", "weights", "none"] = "undersample",
    lora_rank: int = 8,
    random_weights: bool = False,
    epochs: int = 10,
    global_batch: int = 8,
    learning_rate: float | None = None,
    patience: int = 3,
    evaluate_every: int | None = None,
    seed: int = 42,
    dropout: float | None = None,
    train_examples: int | None = None,
    overrides: Overrides = (),
    device: str | None = None,
    micro_batch: int | None = None,
    compile_model: bool | None = None,
    activation_checkpointing: bool = False,
    deterministic: bool | None = None,
    stop_after: int | None = None,
    fresh: bool = False,
    allowed_changes: Sequence[str] = (),
    dollars_per_hour: float | None = None,
    observers: Sequence[Observer] = (),
    tell: Tell = print,
) -> Run:
    """Teaches a model to tell the class of a text, and measures it, as ``fromscratch finetune classify``.

    Args:
        model: as for ``load_model``; also an encoder of transformers.
        data: CSV, TSV, a JSON list or JSON Lines.
        name: name of the run; by default ``MODEL-classify``.
        text_column, label_column: by default those with a usual name.
        train, balance, lora_rank, random_weights: as the options of the command.
        learning_rate: the full rate; by default by ``train`` and the model's width.
        patience, evaluate_every, dropout, train_examples: as for ``finetune_instruct``.
        overrides, and from ``device`` on: as for ``train``.
    """
    billing = Billing(dollars_per_hour)
    task = {
        **{"kind": "classify", "text_column": text_column, "label_column": label_column, "train": train},
        **{"balance": balance, "random_weights": random_weights, "patience": patience, "dropout": dropout},
        **{"train_examples": train_examples, "lora": lora_setting(lora_rank if train == "lora" else None)},
    }
    batches = {"seed": seed, "global_batch": global_batch, "evaluate_every": evaluate_every}
    values = tuning_values(model, data, task, batches, epochs=epochs, learning_rate=learning_rate)
    planned = plan_tuning(tuning_config(values, override_items(overrides), CLASSIFY), {}, CLASSIFY, suits_rate=True)
    path = Path(runs_dir) / tuning_name(name, model, "classify")
    machine = MachineOptions(device, micro_batch, compile_model, activation_checkpointing, deterministic)
    session: dict[str, Any] = {"stop_after": stop_after, "fresh": fresh, "allowed_changes": allowed_changes}
    return train_planned(planned, path, machine, observers, tell, billing=billing, **session)


def load_classifier(source: str | Path, *, device: str | None = None, runs_dir: str | Path = RUNS_DIR) -> "Classifier":
    """Loads a run of ``finetune_classify``, or a folder that was published from one.

    Raises:
        UsageError: it is a language model.
    """
    loaded = open_model(str(source), find_hardware(device), runs_dir=Path(runs_dir), may_classify=True)
    if not loaded.classes:
        raise UsageError(f"model {source}: is a language model; finetune_classify makes a classifier of it")
    return Classifier(loaded)


class Classifier:
    """A model that tells the class of a text."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded

    def __repr__(self) -> str:
        return f"Classifier({self.loaded.source!r})"

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, in the order of their scores."""
        return self.loaded.classes

    @property
    def report(self) -> dict[str, Any] | None:
        """Accuracy, precision, recall and calibration, as ``classification.json`` of its run; None without one."""
        path = self.loaded.run.path / REPORT_FILE if self.loaded.run else None
        return read_json_object(path) if path is not None and path.is_file() else None

    def classify(self, texts: str | Sequence[str], *, batch: int = 32) -> list[dict[str, Any]]:
        """Returns ``text``, ``class`` and ``probabilities`` (by class) of each text, as ``fromscratch classify``."""
        return classify_texts(self.loaded, [texts] if isinstance(texts, str) else list(texts), batch=batch)

    def publish(self, to: str | Path, *, format_name: str | None = None, upload: bool = False) -> PublishReport:
        """Writes an ``AutoModelForSequenceClassification``; see ``Model.publish``."""
        return publish_model(self.loaded, Destination.of(str(to)), format_name=format_name, upload=upload)
