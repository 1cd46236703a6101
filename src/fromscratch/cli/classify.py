"""``fromscratch finetune classify`` and ``fromscratch classify``: make a classifier, and use it."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fromscratch.cli.finetune import (
    TRAINED,
    DropoutOption,
    Epochs,
    EvaluateEvery,
    GlobalBatch,
    Patience,
    TrainExamples,
    dropout_setting,
)
from fromscratch.cli.options import (
    AllowedChanges,
    Checkpointing,
    CompileChoice,
    Deterministic,
    DeviceOption,
    Fresh,
    JsonFlag,
    MicroBatch,
    ModelArgument,
    Overrides,
    PricePerHour,
    Processes,
    QuietFlag,
    RunsDir,
    StopAfter,
)
from fromscratch.cli.output import note
from fromscratch.cli.train import SessionOptions, train_plan
from fromscratch.errors import UsageError


class Trained(StrEnum):
    """Which weights are trained."""

    HEAD = "head"
    LAST_BLOCK = "last-block"
    ALL = "all"
    LORA = "lora"


class Balance(StrEnum):
    """What is done about classes of different sizes."""

    UNDERSAMPLE = "undersample"
    WEIGHTS = "weights"
    NONE = "none"


BalanceOption = Annotated[
    Balance, typer.Option(help="For classes of different sizes: as many texts of each, a weighted loss, or none.")
]
SuitedRate = Annotated[
    float | None, typer.Option(help="The full learning rate; by default by --train and the model's width.")
]


def tune(
    model: ModelArgument,
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="CSV, TSV, a JSON list or JSON Lines.")],
    text_column: Annotated[str | None, typer.Option(help="Column of the text; by default: text, ...")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the class; by default: label, ...")] = None,
    train: Annotated[Trained, typer.Option(help="Which weights are trained.")] = Trained.ALL,
    balance: BalanceOption = Balance.UNDERSAMPLE,
    lora_rank: Annotated[int, typer.Option(min=1, help="With --train lora: the rank of the additions.")] = 8,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Begin at random weights, to know what the model is worth.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name of the run; by default MODEL-classify.")] = None,
    runs_dir: RunsDir = Path("runs"),
    epochs: Epochs = 10,
    global_batch: GlobalBatch = 8,
    learning_rate: SuitedRate = None,
    patience: Patience = 3,
    evaluate_every: EvaluateEvery = None,
    seed: Annotated[int, typer.Option(min=0, help="Names the split, the order, the new head and the dropout.")] = 42,
    dropout: DropoutOption = TRAINED,
    train_examples: TrainExamples = None,
    overrides: Overrides = None,
    micro_batch: MicroBatch = None,
    device: DeviceOption = None,
    processes: Processes = None,
    compile_model: CompileChoice = None,
    activation_checkpointing: Checkpointing = False,
    deterministic: Deterministic = None,
    stop_after: StopAfter = None,
    fresh: Fresh = False,
    allow_change: AllowedChanges = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    dollars_per_hour: PricePerHour = None,
) -> None:
    """Teach a model to tell the class of a text, or continue a stopped run; then measure it on a test part.

    FILE has a column (or key) of texts and one of classes. Each class gives 85% of its texts to training, 5% to
    validation, and 10% to a test. The run's best checkpoint is the classifier.

    Example: fromscratch finetune classify runs/base --data sms-spam.tsv --name spam
    """
    from fromscratch.session.billing import Billing
    from fromscratch.session.placement import MachineOptions
    from fromscratch.session.tuning import plan_tuning, tuning_config
    from fromscratch.session.tuning_values import CLASSIFY, lora_setting, tuning_name, tuning_values

    billing, path = Billing(dollars_per_hour), runs_dir / tuning_name(name, model, "classify")
    task = {
        **{"kind": "classify", "train": train.value, "balance": balance.value, "random_weights": random_weights},
        **{"text_column": text_column, "label_column": label_column, "train_examples": train_examples},
        **{"patience": patience, "dropout": dropout_setting(dropout)},
        "lora": lora_setting(lora_rank if train == Trained.LORA else None),
    }
    batches = {"seed": seed, "global_batch": global_batch, "evaluate_every": evaluate_every}
    values = tuning_values(model, data, task, batches, epochs=epochs, learning_rate=learning_rate)
    plan = plan_tuning(tuning_config(values, overrides or [], CLASSIFY), {}, CLASSIFY, suits_rate=True)
    machine = MachineOptions(device, micro_batch, compile_model, activation_checkpointing, deterministic)
    session = SessionOptions(processes, None, stop_after, fresh, allow_change or (), as_json, quiet)
    train_plan(plan, path, machine, session, billing)


def classify(
    model: ModelArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT|-", help="A text; - reads one per line from stdin.")],
    batch: Annotated[int, typer.Option(min=1, help="Number of texts at a time.")] = 32,
    device: DeviceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object per text.")] = False,
) -> None:
    """Tell the class of a text, with the probability of every class.

    MODEL is a run of 'finetune classify', or a folder that 'publish' made of one. Empty lines are left out.

    Example: fromscratch classify spam "You have won a prize, call now"
    """
    import json

    from fromscratch.finetuning.classifier_report import classify_texts
    from fromscratch.formats.classifiers import known_temperature
    from fromscratch.formats.model_sources import open_model
    from fromscratch.machine.hardware import find_hardware

    texts = [line.rstrip("\r\n") for line in sys.stdin if line.strip()] if text == "-" else [text]
    if not texts:
        raise UsageError("TEXT: stdin has no text")
    loaded = open_model(model, find_hardware(device), may_classify=True)
    if loaded.classes and loaded.run and known_temperature(loaded) is None:
        note(f"notice: no temperature was fitted for these weights of {model}; the probabilities are not calibrated")
    for found in classify_texts(loaded, texts, batch=batch):
        if as_json:
            print(json.dumps(found, ensure_ascii=False))
        else:
            ranked = sorted(found["probabilities"].items(), key=lambda item: -item[1])
            print("\t".join([f"{name} {probability:.1%}" for name, probability in ranked[:5]] + [found["text"]]))
