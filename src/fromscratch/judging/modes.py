"""Three ways to ask a judge: all answers at once, two at a time in both orders, or each alone.

A mode makes the tasks and reads the replies. What a reply says is a judgement: scores by model, or the probability
that the first answer is the better one.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from string import ascii_uppercase as LABELS
from typing import Any, ClassVar

import numpy as np

from fromscratch.errors import UsageError
from fromscratch.judging.endpoint import LOG_PROBABILITIES, MAX_TOKENS, STRUCTURE, TEMPERATURE, Completion
from fromscratch.judging.prompts import Messages, batch_prompt, pair_prompt, single_prompt
from fromscratch.judging.replies import parse_letter, parse_number, parse_probabilities, parse_scores
from fromscratch.judging.responses import AnswerSet, Question, is_score
from fromscratch.randomness import derive_seed

Judgement = dict[str, Any]
"""``scores`` and ``comments`` by model; or ``p_first``, with the ``probability`` of both letters where it is known."""
MAX_LISTED_TOKENS = 20
"""The highest ``top_logprobs`` of OpenAI's protocol."""


@dataclass(frozen=True)
class Task:
    """One request to the judge."""

    question: int
    models: tuple[str, ...]
    """In the order in which their answers are shown."""
    repeat: int
    messages: Messages

    @property
    def key(self) -> str:
        """Names the request by its content: a reply counts as long as question, answers, order and prompt stay."""
        return hashlib.sha256(json.dumps([self.models, self.repeat, self.messages]).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class RequestSettings:
    """What replies depend on beside the prompt."""

    temperature: float
    max_tokens: int


class Mode(ABC):
    """One way to ask."""

    name: ClassVar[str]
    min_models: ClassVar[int] = 1
    max_models: ClassVar[int | None] = None
    is_paired: ClassVar[bool] = False
    """Whether a judgement is the probability that the first of two answers is better."""
    prompt: ClassVar[Callable[[Question, Sequence[str]], Messages]]

    @abstractmethod
    def orders(self, models: Sequence[str], question: int, repeat: int, seed: int) -> Iterator[tuple[str, ...]]:
        """Yields the models of each request about a question, in the order in which they are shown."""

    @abstractmethod
    def parse(self, task: Task, completion: Completion) -> Judgement:
        """Reads a reply. Raises InvalidReplyError."""

    def parameters(self, task: Task, settings: RequestSettings, refused: set[str]) -> dict[str, Any]:
        """Returns the parameters of a request, given those that the endpoint does not take."""
        return {TEMPERATURE: settings.temperature, MAX_TOKENS: settings.max_tokens}

    def holds(self, task: Task, judgement: Any) -> bool:
        """Whether a stored judgement is one about this task."""
        scores = judgement.get("scores") if isinstance(judgement, dict) else None
        return isinstance(scores, dict) and set(scores) == set(task.models) and all(map(is_score, scores.values()))

    def tasks(self, answers: AnswerSet, *, repeats: int, seed: int) -> list[Task]:
        """Returns every request. Those of further models or repeats leave the others as they are, but in a batch.

        Raises:
            UsageError: too few or too many models.
        """
        count = len(answers.models)
        if count < self.min_models:
            raise UsageError(f"--mode {self.name}: needs answers of {self.min_models} models, {count} given")
        if self.max_models is not None and count > self.max_models:
            raise UsageError(f"--mode {self.name}: at most {self.max_models} models, {count} given; use --mode pairs")
        return [
            Task(number, models, repeat, type(self).prompt(question, [answers.answers[m][number] for m in models]))
            for repeat in range(repeats)
            for number, question in enumerate(answers.questions)
            for models in self.orders(answers.models, number, repeat, seed)
        ]

    def prompt_hash(self) -> str:
        """Returns a hash of the prompt, which changes when a word of it does."""
        messages = type(self).prompt(Question("i", "j", "r"), ["a", "b"][: max(1, self.min_models)])
        return hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:16]


class Batch(Mode):
    """All models' answers in one prompt, in an order drawn from the seed."""

    name = "batch"
    max_models = len(LABELS)
    prompt = batch_prompt

    def orders(self, models: Sequence[str], question: int, repeat: int, seed: int) -> Iterator[tuple[str, ...]]:
        """Repeats rotate the order: after as many repeats as models, each model has had each place once."""
        rounds, turns = divmod(repeat, len(models))
        drawn = np.random.default_rng(derive_seed(seed, "judge-order", question, rounds)).permutation(len(models))
        yield tuple(models[index] for index in np.roll(drawn, -turns))

    def parameters(self, task: Task, settings: RequestSettings, refused: set[str]) -> dict[str, Any]:
        """Asks for structured output: an object with exactly the letters."""
        return {**super().parameters(task, settings, refused), STRUCTURE: _structure(LABELS[: len(task.models)])}

    def parse(self, task: Task, completion: Completion) -> Judgement:
        """Reads a JSON object with a score and a comment for each letter."""
        judged = parse_scores(completion.text, LABELS[: len(task.models)])
        by_model = dict(zip(task.models, judged.values(), strict=True))
        return {
            "scores": {model: score for model, (score, _) in by_model.items()},
            "comments": {model: comment for model, (_, comment) in by_model.items()},
        }


class Pairs(Mode):
    """Two answers at a time, in both orders. Judged by the probabilities of the letters where they are given."""

    name = "pairs"
    min_models = 2
    is_paired = True
    prompt = pair_prompt

    def orders(self, models: Sequence[str], question: int, repeat: int, seed: int) -> Iterator[tuple[str, ...]]:
        """Both orders of every pair."""
        for one, other in combinations(models, 2):
            yield from ((one, other), (other, one))

    def parameters(self, task: Task, settings: RequestSettings, refused: set[str]) -> dict[str, Any]:
        """Asks for one token and its alternatives; without them, for a whole reply, which may begin with thoughts."""
        if LOG_PROBABILITIES in refused:
            return super().parameters(task, settings, refused)
        listed = {LOG_PROBABILITIES: True, "top_logprobs": MAX_LISTED_TOKENS}
        return {**super().parameters(task, settings, refused), **listed, MAX_TOKENS: 1}

    def parse(self, task: Task, completion: Completion) -> Judgement:
        """Reads the probabilities, or the letter."""
        if completion.log_probabilities:
            p_first, probability = parse_probabilities(completion.log_probabilities)
            return {"p_first": p_first, "probability": probability}
        return {"p_first": parse_letter(completion.text)}

    def holds(self, task: Task, judgement: Any) -> bool:
        """Whether a stored judgement is a probability."""
        p = judgement.get("p_first") if isinstance(judgement, dict) else None
        return isinstance(p, int | float) and not isinstance(p, bool) and 0 <= p <= 1


class Individual(Mode):
    """One answer at a time, as the book does."""

    name = "individual"
    prompt = single_prompt

    def orders(self, models: Sequence[str], question: int, repeat: int, seed: int) -> Iterator[tuple[str, ...]]:
        """Each model alone."""
        yield from ((model,) for model in models)

    def parse(self, task: Task, completion: Completion) -> Judgement:
        """Reads a whole number."""
        return {"scores": {task.models[0]: parse_number(completion.text)}, "comments": {}}


MODES: Mapping[str, Mode] = {mode.name: mode for mode in (Batch(), Pairs(), Individual())}


def find_mode(name: str) -> Mode:
    """Returns the mode of that name. Raises UsageError."""
    if name not in MODES:
        raise UsageError(f"--mode {name}: must be {', '.join(MODES)}")
    return MODES[name]


def _structure(labels: str) -> dict[str, Any]:
    entry = _object({"comment": {"type": "string"}, "score": {"type": "integer", "minimum": 0, "maximum": 100}})
    schema = {"name": "judgement", "strict": True, "schema": _object(dict.fromkeys(labels, entry))}
    return {"type": "json_schema", "json_schema": schema}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
