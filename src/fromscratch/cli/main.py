"""The ``fromscratch`` command: its subcommands and its error handling."""

import logging
import sys
from typing import Annotated

import typer

from fromscratch import __version__
from fromscratch.cli import (
    bench,
    chat,
    classify,
    compare,
    costs,
    dashboard,
    data,
    evaluate,
    export,
    finetune,
    fit,
    generate,
    judge,
    plan,
    publish,
    quickstart,
    respond,
    runs,
    study,
    train,
)
from fromscratch.cli.output import NoticeHandler, printable, protect_standard_streams
from fromscratch.errors import EXIT_CRASH, EXIT_INTERRUPTED, FromScratchError
from fromscratch.processes.parent import watch_launcher

DEBUG_FLAG = "--debug"

app = typer.Typer(
    name="fromscratch",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"fromscratch {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train, compare and publish small language models.

    Start with: fromscratch quickstart

    Every command has --help; --debug shows the traceback of an error.

    Exit codes: 0 done, 1 crash, 2 bad usage or run file, 3 bad data or checkpoint, 4 diverged, 75 stopped and
    resumable, 130 ended at once by Ctrl-C (128 + the number of the signal).
    """


app.command(name="quickstart")(quickstart.quickstart)
app.add_typer(data.app, name="data")
app.command(name="plan")(plan.plan)
app.command(name="train")(train.train)
finetune.app.command(name="classify")(classify.tune)
app.add_typer(finetune.app, name="finetune")
app.command(name="respond")(respond.respond)
app.command(name="classify")(classify.classify)
app.command(name="fit")(fit.fit)
app.command(name="bench")(bench.bench)
app.add_typer(evaluate.app, name="eval")
app.add_typer(study.app, name="study")
runs.app.command(name="cost")(costs.cost)
runs.app.command(name="export")(export.export)
app.add_typer(runs.app, name="runs")
app.command(name="compare")(compare.compare)
app.command(name="dashboard")(dashboard.dashboard)
app.command(name="generate")(generate.generate)
app.command(name="chat")(chat.chat)
app.add_typer(judge.app, name="judge")
app.command(name="import")(publish.import_model)
app.command(name="publish")(publish.publish)


def main() -> None:
    """Runs the command line and exits with the documented codes: see ``fromscratch.errors``."""
    arguments = [argument for argument in sys.argv[1:] if argument != DEBUG_FLAG]
    debug = len(arguments) < len(sys.argv) - 1
    protect_standard_streams()
    logging.getLogger("fromscratch").handlers = [NoticeHandler()]
    watch_launcher()
    try:
        try:
            app(arguments, prog_name="fromscratch")
        finally:
            sys.stdout.flush()  # raises an error here, not during shutdown
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.exit(EXIT_CRASH)  # nobody reads text that appears token by token
    except Exception as error:
        if debug:
            raise
        sys.exit(report_error(error))


def report_error(error: Exception) -> int:
    """Prints the error on stderr; returns the exit code."""
    if isinstance(error, FromScratchError):
        print("\n".join(printable(line) for line in f"error: {error}".splitlines()), file=sys.stderr)
        return error.exit_code
    print(printable(f"error: {type(error).__name__}: {error} ({DEBUG_FLAG} shows the traceback)"), file=sys.stderr)
    return EXIT_CRASH
