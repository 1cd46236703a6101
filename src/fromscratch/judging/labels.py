"""Labels by a person: which of two answers is better, without their models' names."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from fromscratch.judging.responses import AnswerSet
from fromscratch.randomness import derive_seed
from fromscratch.runs.records import RecordWriter, now_as_text, read_records

TIE = "tie"


@dataclass(frozen=True)
class Pair:
    """Two models' answers to a question, in the order in which a person sees them."""

    question: int
    first: str
    second: str

    def key(self, answers: AnswerSet) -> str:
        """Names the pair by its content, so that a label does not survive a change of the answers."""
        question = answers.questions[self.question]
        texts = sorted(f"{model}\0{answers.answers[model][self.question]}" for model in (self.first, self.second))
        content = "\0".join([question.instruction, question.input, *texts])
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def draw_pairs(answers: AnswerSet, number: int, seed: int) -> list[Pair]:
    """Draws different pairs at random, the same number of each two models, in a random order."""
    generator = np.random.default_rng(derive_seed(seed, "judge-labels"))
    of_models = list(combinations(answers.models, 2))
    orders = {models: generator.permutation(len(answers.questions)) for models in of_models}
    drawn = [
        Pair(int(orders[models][turn]), *(models if generator.random() < 0.5 else models[::-1]))
        for turn in range(len(answers.questions))
        for models in of_models
    ][:number]
    return [drawn[index] for index in generator.permutation(len(drawn))]


def read_labels(path: Path, answers: AnswerSet) -> Iterator[tuple[Pair, str]]:
    """Yields the pairs that a person labelled, and what the label was: a model, or ``tie``.

    Labels of other answers, and of pairs that were labelled again later, are left out.
    """
    found: dict[str, tuple[Pair, str]] = {}
    for record in read_records(path):
        question, first, second = record.get("question"), str(record.get("first")), str(record.get("second"))
        known = {first, second} <= set(answers.models) and first != second
        if not isinstance(question, int) or not 0 <= question < len(answers.questions) or not known:
            continue
        pair = Pair(question, first, second)
        if record.get("key") == pair.key(answers) and record.get("label") in {first, second, TIE}:
            found[pair.key(answers)] = (pair, record["label"])
    yield from found.values()


def ask_labels(
    path: Path, answers: AnswerSet, pairs: list[Pair], ask: Callable[[Pair, int], str | None]
) -> tuple[int, int]:
    """Asks for the labels that are missing, and saves each at once; None ends.

    Returns how many of the pairs have labels, and how many were labelled now.
    """
    done = {pair.key(answers) for pair, _ in read_labels(path, answers)}
    missing = [pair for pair in pairs if pair.key(answers) not in done]
    labelled = 0
    with RecordWriter(path) as writer:
        for pair in missing:
            label = ask(pair, len(pairs) - len(missing) + labelled)
            if label is None:
                break
            key = {"key": pair.key(answers), "question": pair.question}
            writer.write({**key, "first": pair.first, "second": pair.second, "label": label, "at": now_as_text()})
            writer.flush()
            labelled += 1
    return len(pairs) - len(missing) + labelled, labelled
