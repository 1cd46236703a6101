"""The ``fromscratch`` command: its verbs, and what happens to errors."""

import os
import sys
from typing import Annotated

import typer

from fromscratch import __version__
from fromscratch.cli import data, evaluate, generate, quickstart, train
from fromscratch.errors import EXIT_CRASH, EXIT_USAGE, FromScratchError

DEBUG_FLAG = "--debug"

app = typer.Typer(
    name="fromscratch",
    no_args_is_help=True,
    add_completion=False,
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

    Every verb takes --help, and --debug shows the traceback of an error.
    """


app.command(name="quickstart")(quickstart.quickstart)
app.add_typer(data.app, name="data")
app.command(name="train")(train.train)
app.add_typer(evaluate.app, name="eval")
app.command(name="generate")(generate.generate)


def main() -> None:
    """Runs the command line and exits with the documented codes: see ``fromscratch.errors``."""
    arguments = [a for a in sys.argv[1:] if a != DEBUG_FLAG]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        app(arguments, prog_name="fromscratch", standalone_mode=True)
    except FromScratchError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads any more: end quietly
        sys.exit(EXIT_CRASH)
    except MemoryError:
        sys.exit(_crash("out of memory; lower --micro-batch", debug=debug))
    except Exception as error:
        if debug:
            raise
        sys.exit(_crash(f"{type(error).__name__}: {error} (--debug shows where)", debug=debug))


def _crash(message: str, *, debug: bool) -> int:
    if debug:
        raise
    print(f"error: {message}", file=sys.stderr)
    return EXIT_CRASH


__all__ = ["EXIT_USAGE", "app", "main"]
