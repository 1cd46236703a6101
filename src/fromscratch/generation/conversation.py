"""A conversation as the text that a model continues.

A base model has never been told what a conversation is, but it has read many: written down as a
transcript with an introduction, it goes on with the next line. A fine-tuned model gets the prompt it
was trained on. Both are a ``Template``, which a file can hold.
"""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from fromscratch.errors import UsageError
from fromscratch.generation.texts import Settings, continue_prompts
from fromscratch.tokenizers.base import Tokenizer

MESSAGE = "{message}"


@dataclass(frozen=True)
class Template:
    """How messages become a prompt."""

    introduction: str = ""
    """What stands before the first message."""
    turn: str = "\nUser: {message}\nAssistant:"
    """A message, up to where the answer begins."""
    stop: tuple[str, ...] = ("\nUser:", "\nAssistant:")
    """What ends an answer."""
    remembers: bool = True
    """Whether earlier messages and answers stand in the prompt."""

    def prompt(self, history: list[tuple[str, str]], message: str) -> str:
        """The text to continue, after ``history`` (messages and answers)."""
        earlier = history if self.remembers else []
        turns = [self.turn.replace(MESSAGE, asked) + answer for asked, answer in earlier]
        return self.introduction + "".join(turns) + self.turn.replace(MESSAGE, message)


TEMPLATES = {
    "transcript": Template(
        introduction=(
            "This is a transcript of a conversation between a User and a helpful, polite and precise Assistant. "
            "The Assistant answers each question in one or two sentences.\n"
            "\nUser: Hello, who are you?\nAssistant: I am the Assistant. What would you like to know?"
        )
    ),
    "alpaca": Template(
        introduction=(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        ),
        turn="\n\n### Instruction:\n{message}\n\n### Response:\n",
        stop=("\n### Instruction:",),
        remembers=False,
    ),
}


KINDS = {str: "a string", bool: "true or false", tuple: "an array of strings that are not empty"}


def open_template(word: str) -> Template:
    """A template by name, or from a TOML file with the fields of ``Template``.

    Raises:
        UsageError: no such name or file, or the file says something wrong.
    """
    if word in TEMPLATES:
        return TEMPLATES[word]
    path = Path(word)
    if not path.is_file():
        raise UsageError(f"--template {word}: no such file, and not one of {', '.join(TEMPLATES)}")
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None
    known = {field.name for field in fields(Template)}
    if unknown := sorted(values.keys() - known):
        raise UsageError(f"{path}: unknown key '{unknown[0]}'; known are {', '.join(sorted(known))}")
    for key, value in values.items():
        if not _has_type_of(key, value):
            raise UsageError(f"{path}: {key} = {value!r}: must be {KINDS[type(getattr(Template, key))]}")
    template = Template(**{**values, "stop": tuple(values.get("stop", Template.stop))})
    if MESSAGE not in template.turn:
        raise UsageError(f"{path}: turn = {template.turn!r}: must hold {MESSAGE}")
    return template


def _has_type_of(key: str, value: object) -> bool:
    """Whether a value from TOML fits a field of ``Template``."""
    if key == "stop":
        return isinstance(value, list) and all(isinstance(text, str) and text for text in value)
    return isinstance(value, type(getattr(Template, key)))


class Conversation:
    """A model, a template, and what was said so far."""

    def __init__(self, model: object, tokenizer: Tokenizer, template: Template, settings: Settings) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._template = template
        self._settings = Settings(
            max_new_tokens=settings.max_new_tokens,
            sampling=settings.sampling,
            seed=settings.seed,
            stop=(*settings.stop, *template.stop),
        )
        self.history: list[tuple[str, str]] = []

    def answer(self, message: str, on_text: Callable[[str], None] = lambda _piece: None) -> str:
        """The model's answer, which becomes part of the conversation; ``on_text`` is told every piece of it."""
        prompt = self._template.prompt(self.history, message)
        (result,) = continue_prompts(
            self._model, self._tokenizer, [prompt], self._settings, on_text=lambda _row, piece: on_text(piece)
        )
        self.history.append((message, result.text))
        return result.text
