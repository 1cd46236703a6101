"""Chat: formats messages as a prompt, which the model continues.

A base model continues a transcript after an introduction. A fine-tuned model needs the prompt format of
its training. Both are a ``Template``, built in or from a TOML file.
"""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from fromscratch.config.prompts import INSTRUCTION, PromptFormat
from fromscratch.errors import UsageError
from fromscratch.generation.generate import Settings
from fromscratch.generation.texts import continue_prompts
from fromscratch.tokenizers.base import Tokenizer

MESSAGE = "{message}"
TRANSCRIPT = "transcript"
"""The template of models that were not tuned."""


@dataclass(frozen=True)
class Template:
    """A prompt format."""

    introduction: str = ""
    """The text before the first message."""
    turn: str = "\nUser: {message}\nAssistant:"
    """A message and the text between it and the answer."""
    stop: tuple[str, ...] = ("\nUser:", "\nAssistant:")
    """Stop strings: an answer ends before the first of them."""
    ending: str = ""
    """The text after an earlier answer."""
    remembers: bool = True
    """Whether the prompt contains earlier messages and answers."""

    def prompt(self, history: list[tuple[str, str]], message: str) -> str:
        """Returns the prompt for a message. ``history`` holds pairs of message and answer."""
        earlier = history if self.remembers else []
        turns = [self.turn.replace(MESSAGE, asked) + answer + self.ending for asked, answer in earlier]
        return self.introduction + "".join(turns) + self.turn.replace(MESSAGE, message)


def template_of(form: PromptFormat) -> Template:
    """Returns the template of a model that was tuned on instructions.

    It remembers earlier messages if the format marks where an answer ends.
    """
    return Template(
        introduction=form.introduction,
        turn=form.turn.replace(INSTRUCTION, MESSAGE),
        stop=tuple(filter(None, [form.ending.strip()])),
        ending=form.ending,
        remembers=bool(form.ending),
    )


TEMPLATES = {
    TRANSCRIPT: Template(
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


def open_template(name: str) -> Template:
    """Returns a template by its name, or from a TOML file with the fields of ``Template``.

    Raises:
        UsageError: no such name or file, or the file is not valid.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"--template {name}: no such file, and not one of {', '.join(TEMPLATES)}")
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None
    known = {field.name for field in fields(Template)}
    if unknown := sorted(values.keys() - known):
        raise UsageError(f"{path}: unknown key '{unknown[0]}'; known keys: {', '.join(sorted(known))}")
    for key, value in values.items():
        if not _has_type_of(key, value):
            raise UsageError(f"{path}: {key} = {value!r}: must be {KINDS[type(getattr(Template, key))]}")
    template = Template(**{**values, "stop": tuple(values.get("stop", Template.stop))})
    if MESSAGE not in template.turn:
        raise UsageError(f"{path}: turn = {template.turn!r}: must contain {MESSAGE}")
    return template


def _has_type_of(key: str, value: object) -> bool:
    """Returns whether a value from TOML has the type of a field of ``Template``."""
    if key == "stop":
        return isinstance(value, list) and all(isinstance(text, str) and text for text in value)
    return isinstance(value, type(getattr(Template, key)))


class Conversation:
    """A chat with a model; keeps the messages and answers so far."""

    def __init__(self, model: object, tokenizer: Tokenizer, template: Template, settings: Settings) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._template = template
        self._settings = replace(settings, stop=(*settings.stop, *template.stop))
        self.history: list[tuple[str, str]] = []

    def prompt(self, message: str) -> str:
        """Returns the text that the model continues to answer a message."""
        return self._template.prompt(self.history, message)

    def answer(self, message: str, on_text: Callable[[str], None] = lambda _new: None) -> str:
        """Returns the answer and adds it to the history. ``on_text`` receives new text as it is generated."""
        prompt = self.prompt(message)
        (result,) = continue_prompts(
            self._model, self._tokenizer, [prompt], self._settings, on_text=lambda _row, new: on_text(new)
        )
        self.history.append((message, result.text))
        return result.text
