"""Shows two answers in a terminal and reads one key."""

import sys

import typer

from fromscratch.cli.output import printable
from fromscratch.judging.labels import TIE, Pair
from fromscratch.judging.responses import AnswerSet

FIRST, SECOND, EQUAL, QUIT = "a", "b", "t", "q"
KEYS = f"better: {FIRST} or {SECOND}, {EQUAL} tie, {QUIT} quit > "
CONTROL_C, CONTROL_D = "\x03", "\x04"


class Asker:
    """Asks a person about one pair after another."""

    def __init__(self, answers: AnswerSet, total: int) -> None:
        self._answers, self._total = answers, total

    def __call__(self, pair: Pair, number: int) -> str | None:
        """Returns the model of the better answer, or ``tie``; None to quit."""
        question = self._answers.questions[pair.question]
        print(f"\n===== pair {number + 1} of {self._total} =====")
        for title, text in (
            ("Instruction", question.instruction),
            ("Input", question.input),
            ("Reference", question.reference),
            ("Answer a", self._answers.answers[pair.first][pair.question]),
            ("Answer b", self._answers.answers[pair.second][pair.question]),
        ):
            if text or title.startswith("Answer"):
                print(f"\n--- {title}")
                print("\n".join(printable(line) for line in text.splitlines()))
        print(f"\n{KEYS}", end="", flush=True)
        while (key := _read_key()) not in {QUIT, "", CONTROL_C, CONTROL_D}:
            if label := {FIRST: pair.first, SECOND: pair.second, EQUAL: TIE}.get(key):
                print(key)
                return label
        print()
        return None


def _read_key() -> str:
    """Returns the next key in lower case, of a terminal without waiting for Enter; empty at the end of the input."""
    if sys.stdin.isatty():
        return typer.getchar().lower()
    return sys.stdin.read(1).lower()
