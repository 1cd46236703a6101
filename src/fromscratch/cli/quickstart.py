"""``fromscratch quickstart``."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fromscratch.cli.options import JsonFlag, QuietFlag
from fromscratch.cli.output import note, print_json
from fromscratch.errors import EXIT_STOPPED

if TYPE_CHECKING:
    from fromscratch.quickstart import QuickstartReport


def quickstart(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The folder to write.")] = Path("quickstart"),
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Train a small GPT on real English, offline, in a few minutes.

    Ctrl-C saves and stops; the same command continues.

    Example: fromscratch quickstart
    """
    from fromscratch.quickstart import quickstart as run_quickstart
    from fromscratch.training.observers import terminal_observer

    observers = [] if quiet else [terminal_observer()]
    report = run_quickstart(folder, observers=observers, on_progress=lambda line: note(line, quiet=quiet))
    if report.after is None:
        note(f"stopped at step {report.training.step} of {report.training.num_steps}; the same command continues")
        raise typer.Exit(EXIT_STOPPED)
    if as_json:
        print_json(asdict(report))
    else:
        show(report, folder)


def show(report: "QuickstartReport", folder: Path) -> None:
    """Prints the measurements, the sampled texts and the next commands."""
    before, after, paragraph = report.before, report.after, report.paragraph
    assert before is not None and after is not None and paragraph is not None
    print(f"\nHeld-out text, {after.bytes:,} bytes      bits per byte   loss (nats per token)")
    print(f"  untrained model                 {before.bits_per_byte:8.3f}        {before.loss:8.3f}")
    for name, command in (("gzip", "gzip -9"), ("xz", "xz -9")):
        print(f"  {command:<30}  {report.compressors[name]:8.3f}")
    print(f"  trained model                   {after.bits_per_byte:8.3f}        {after.loss:8.3f}")
    for title, texts in (
        ("Before training, the model wrote", report.samples_before),
        ("After training, the model wrote", report.samples_after),
        ("A paragraph of it, chosen from a few seeds (the first command below prints it)", [paragraph.text]),
    ):
        print(f"\n{title}:")
        for text in texts:
            print("  | " + text.replace("\n", "\n  | "))
    run = f"{folder}/runs/quickstart"
    print(f"\nTrained in {report.training.seconds:,.0f} s at {report.training.tokens_per_second:,.0f} tokens/s.")
    print("Charts: " + ", ".join(report.charts))
    print("\nNext:")
    print("  " + shlex.join(paragraph.arguments(run)))
    print(f"  fromscratch eval loss {run} --store {folder}/store")
    print(f"  fromscratch train {report.run_file} --runs-dir {folder}/runs --name seed-7 --set train.seed=7")
