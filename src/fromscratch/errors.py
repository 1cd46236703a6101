"""Errors for the user: one clear sentence and an exit code.

Every error that a user can cause or correct is a ``FromScratchError``. The command line prints its message
without a traceback and exits with its code. Any other exception is a bug; ``--debug`` shows its traceback.
"""

from typing import ClassVar

EXIT_DONE = 0
EXIT_CRASH = 1
EXIT_USAGE = 2
EXIT_DATA = 3
EXIT_DIVERGED = 4
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: give the same command again to resume
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it: Ctrl-C ended the command at once; nothing was saved


class FromScratchError(Exception):
    """The base class of errors for the user; exit code 1."""

    exit_code: ClassVar[int] = EXIT_CRASH


class UsageError(FromScratchError):
    """A bad command line, run file or setting; exit code 2."""

    exit_code: ClassVar[int] = EXIT_USAGE


class DataError(FromScratchError):
    """A token store, tokenizer, text or checkpoint that cannot be used; exit code 3."""

    exit_code: ClassVar[int] = EXIT_DATA


class DivergedError(FromScratchError):
    """Training diverged: several non-finite steps in a row; exit code 4."""

    exit_code: ClassVar[int] = EXIT_DIVERGED
