"""Options and arguments that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def _checked_picture(path: Path | None) -> Path | None:
    from fromscratch.runs.charts import check_picture

    return path and check_picture(path)


JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of a table.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result and errors.")]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run, RUN@latest, RUN@step-N, RUN@ema, RUN@latest+tail, a checkpoint, an exported or imported folder, "
        "owner/name on the Hugging Face Hub, or gpt2, gpt2-medium, gpt2-large, gpt2-xl.",
    ),
]
PictureOption = Annotated[
    Path | None,
    typer.Option("--picture", callback=_checked_picture, help="Also draw a chart into this file (PNG)."),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cuda, cuda:N, mps or cpu; by default the fastest available.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the run file; repeatable.")
]
MicroBatch = Annotated[
    int | None, typer.Option(min=1, help="Sequences per forward pass; changes the speed, not the result.")
]
Processes = Annotated[
    int | None, typer.Option(min=1, help="Processes on this machine, one per device; changes only the speed.")
]
CompileChoice = Annotated[
    bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile; by default on CUDA only.")
]
Deterministic = Annotated[
    bool | None,
    typer.Option(
        "--deterministic/--no-deterministic",
        help="Deterministic kernels only: a resume on a GPU is bit-exact, steps are slower. A resumed run keeps it.",
    ),
]
RunsDir = Annotated[Path, typer.Option(help="Folder of runs.")]
StopAfter = Annotated[int | None, typer.Option(min=1, help="Save and stop after this step.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start again; an older run is renamed.")]
AllowedChanges = Annotated[
    list[str] | None,
    typer.Option("--allow-change", metavar="KEY", help="Continue with another value of a key; repeatable."),
]
PricePerHour = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        envvar="FROMSCRATCH_DOLLARS_PER_HOUR",
        help="Price of all machines of the run together, for 'fromscratch runs cost'.",
    ),
]
ShardChoice = Annotated[
    Literal["auto", "on", "off"],
    typer.Option(
        "--shard",
        help="Divide weights, gradients and optimiser state among the processes (FSDP2); by default where a copy of "
        "the model does not fit into the memory of a GPU. The result is the same to rounding.",
    ),
]
Checkpointing = Annotated[
    bool, typer.Option("--activation-checkpointing", help="Use less memory and a third more compute; the same result.")
]
