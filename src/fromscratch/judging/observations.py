"""From judgements to the table that the statistics read: one row for each score, or for each comparison of two."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fromscratch.judging.modes import Judgement, Task
from fromscratch.judging.responses import AnswerSet

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Observations:
    """The judgements about M models on Q questions."""

    models: list[str]
    is_paired: bool
    values: Floats
    """Per row: the score (0 to 100), or the probability that the first answer is better."""
    question: Integers
    repeat: Integers
    first: Integers
    """Index of the judged model; of the one shown first, for pairs."""
    second: Integers
    """Index of the model shown second; -1 for scores."""
    place: Floats
    """Place in the list, from 1/2 for the first to -1/2 for the last; 0 alone, and for pairs."""
    length: Floats
    """log2 of the answer's characters; for pairs, of the first answer's over the second's."""
    num_questions: int

    @classmethod
    def of(
        cls, answers: AnswerSet, tasks: Sequence[Task], judgements: Mapping[str, Judgement], *, is_paired: bool
    ) -> "Observations":
        """Collects the judgements of these tasks."""
        index = {model: number for number, model in enumerate(answers.models)}
        rows: list[tuple[float, int, int, int, int, float, float]] = []
        for task in tasks:
            judgement = judgements.get(task.key)
            if judgement is None:
                continue
            lengths = [np.log2(1 + len(answers.answers[model][task.question])) for model in task.models]
            numbers = [index[model] for model in task.models]
            if is_paired:
                difference = lengths[0] - lengths[1]
                rows.append((judgement["p_first"], task.question, task.repeat, *numbers, 0.0, difference))
                continue
            last = max(1, len(numbers) - 1)
            for order, (model, number, length) in enumerate(zip(task.models, numbers, lengths, strict=True)):
                place = 0.5 - order / last if len(numbers) > 1 else 0.0
                rows.append((judgement["scores"][model], task.question, task.repeat, number, -1, place, length))
        table = np.array(rows, dtype=np.float64).reshape(len(rows), 7)
        values, shown_at, lengths_of = (table[:, column] for column in (0, 5, 6))
        question, repeat, first, second = (table[:, column].astype(np.int64) for column in (1, 2, 3, 4))
        return cls(
            answers.models,
            is_paired,
            values,
            question,
            repeat,
            first,
            second,
            shown_at,
            lengths_of,
            len(answers.questions),
        )

    def by_question(self) -> Floats:
        """Returns each model's mean score, or its share of won comparisons in percent, per question: [Q, M].

        NaN where nothing was judged.
        """
        pairs = [(self.first, self.values)]
        if self.is_paired:
            pairs = [(self.first, 100 * self.values), (self.second, 100 * (1 - self.values))]
        sums = np.zeros((self.num_questions, len(self.models)))
        counts = np.zeros_like(sums)
        for model, value in pairs:
            np.add.at(sums, (self.question, model), value)
            np.add.at(counts, (self.question, model), 1)
        return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)

    def preferences(self, one: int, other: int) -> Floats:
        """Returns how much a model is preferred to another, as [Q, raters]: 1 wins, 0 loses, 1/2 is a tie.

        A rater is a repeat; of pairs, an order within a repeat. NaN where it did not judge.
        """
        if self.is_paired:
            raters = 2 * (int(self.repeat.max(initial=0)) + 1)
            table = np.full((self.num_questions, raters), np.nan)
            for order, (a, b) in enumerate(((one, other), (other, one))):
                rows = (self.first == a) & (self.second == b)
                value = self.values[rows] if order == 0 else 1 - self.values[rows]
                table[self.question[rows], 2 * self.repeat[rows] + order] = value
            return table
        scores = np.full((2, self.num_questions, int(self.repeat.max(initial=0)) + 1), np.nan)
        for number, model in enumerate((one, other)):
            rows = self.first == model
            scores[number, self.question[rows], self.repeat[rows]] = self.values[rows]
        return (np.sign(scores[0] - scores[1]) + 1) / 2
