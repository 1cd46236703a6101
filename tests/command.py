"""The command line in this process: hundreds of calls a second, with the exit codes of the real one."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from fromscratch.cli.main import main

DOCUMENTED_CODES = {0, 1, 2, 3, 4, 75}


@dataclass(frozen=True)
class Answer:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str


def run_command(*arguments: object, typed: str = "") -> Answer:
    """Runs ``fromscratch ARGUMENTS`` here; an exception that gets out of it fails the test."""
    before, out, err = (sys.argv, sys.stdin), io.StringIO(), io.StringIO()
    sys.argv, sys.stdin = ["fromscratch", *map(str, arguments)], io.StringIO(typed)
    code = 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv, sys.stdin = before
    return Answer(code, out.getvalue(), err.getvalue())


def refused(*arguments: object, code: int, says: str) -> str:
    """Checks that a command is refused as it should be: one clear message, no trace, no data on stdout."""
    answer = run_command(*arguments)
    assert (answer.code, answer.out) == (code, ""), answer
    assert says in answer.err, answer.err
    assert "Traceback" not in answer.err and "--debug" not in answer.err, answer.err
    return answer.err


@contextmanager
def nothing_written(folder: Path) -> Iterator[None]:
    """Checks that the block leaves every file below a folder as it was."""
    before = _state(folder)
    yield
    assert _state(folder) == before


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    paths = {path: path.lstat() for path in folder.rglob("*")}
    return {str(path): (0, 0) if path.is_dir() else (facts.st_size, facts.st_mtime_ns) for path, facts in paths.items()}
