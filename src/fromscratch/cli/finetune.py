"""``fromscratch finetune``: trains a model further, for a task."""

from pathlib import Path
from typing import Annotated

import typer

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
from fromscratch.cli.train import SessionOptions, train_plan
from fromscratch.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="Train a model further, for a task.")

TRAINED = "trained"


RecordsOption = Annotated[Path, typer.Option("--data", metavar="FILE", help="Records: a JSON list or JSON Lines.")]
NameOption = Annotated[str | None, typer.Option(help="Name of the run; by default MODEL-instruct.")]
Epochs = Annotated[int, typer.Option(min=1, help="How often the training part is read, at most.")]
GlobalBatch = Annotated[int, typer.Option(min=1, help="Records per step, whatever the machine.")]
LearningRate = Annotated[float, typer.Option(help="The full learning rate.")]
Patience = Annotated[
    int, typer.Option(min=0, help="Stop after this number of evaluations without a lower validation loss; 0 never.")
]
EvaluateEvery = Annotated[
    int | None, typer.Option(min=1, metavar="STEPS", help="Steps between evaluations; by default one epoch.")
]
DropoutOption = Annotated[
    str, typer.Option(metavar="trained|0|P", help="Dropout: as in the model's training, off, or a share.")
]
LoraRank = Annotated[int | None, typer.Option("--lora", min=1, metavar="RANK", help="Train low-rank additions only.")]
TrainExamples = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Train on N records of the training part; by default all.")
]


@app.command()
def instruct(
    model: ModelArgument,
    data: RecordsOption,
    prompt_format: Annotated[
        str, typer.Option("--format", help="alpaca, phi3, chatml, a template with {instruction}, or a TOML file.")
    ] = "alpaca",
    mask_prompt: Annotated[bool, typer.Option("--mask-prompt", help="Learn the responses only.")] = False,
    name: NameOption = None,
    runs_dir: RunsDir = Path("runs"),
    epochs: Epochs = 5,
    global_batch: GlobalBatch = 8,
    learning_rate: LearningRate = 5e-5,
    patience: Patience = 2,
    evaluate_every: EvaluateEvery = None,
    seed: Annotated[int, typer.Option(min=0, help="Names the split, the order and the dropout.")] = 42,
    dropout: DropoutOption = TRAINED,
    lora: LoraRank = None,
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
    """Teach a model to respond to instructions, or continue a stopped run.

    FILE holds records with instruction, input and output, or with messages. 85% of them are for training, 5% for
    validation, and 10% for a test; the run writes those into split/test.json. The run's best checkpoint is the model.

    Example: fromscratch finetune instruct gpt2 --data instructions.json
    """
    from fromscratch.finetuning.prompts import read_prompt_format
    from fromscratch.session.billing import Billing
    from fromscratch.session.placement import MachineOptions
    from fromscratch.session.tuning import plan_tuning, tuning_config
    from fromscratch.session.tuning_values import INSTRUCT, lora_setting, tuning_name, tuning_values

    billing, path = Billing(dollars_per_hour), runs_dir / tuning_name(name, model, "instruct")
    task = {
        **{"kind": "instruct", "prompt": read_prompt_format(prompt_format), "mask_prompt": mask_prompt},
        **{"patience": patience, "dropout": dropout_setting(dropout), "train_examples": train_examples},
        "lora": lora_setting(lora),
    }
    batches = {"seed": seed, "global_batch": global_batch, "evaluate_every": evaluate_every}
    values = tuning_values(model, data, task, batches, epochs=epochs, learning_rate=learning_rate)
    plan = plan_tuning(tuning_config(values, overrides or [], INSTRUCT), {}, INSTRUCT)
    machine = MachineOptions(device, micro_batch, compile_model, activation_checkpointing, deterministic)
    options = SessionOptions(processes, None, stop_after, fresh, allow_change or (), as_json, quiet)
    train_plan(plan, path, machine, options, billing)


def dropout_setting(text: str) -> float | None:
    """Returns the value for ``--dropout``; None for that of the model's training. Raises UsageError."""
    if text == TRAINED:
        return None
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--dropout {text}: must be {TRAINED}, 0, or a share below 1") from None
