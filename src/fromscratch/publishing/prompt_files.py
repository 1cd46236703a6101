"""Writes the prompt format of a tuned model: for this package, and as a chat template for transformers."""

import json
from pathlib import Path

from fromscratch.config.prompts import INSTRUCTION, SYSTEM, PromptFormat
from fromscratch.files import read_json_object, to_strict_json
from fromscratch.formats.prompt_files import PROMPT_FILE
from fromscratch.publishing.tokenizer_files import SETTINGS_FILE


def write_prompt_format(form: PromptFormat, folder: Path) -> None:
    """Writes the format, and its chat template into the settings of the tokenizer, which must be there."""
    (folder / PROMPT_FILE).write_text(to_strict_json(form.model_dump(), indent=1), "utf-8")
    settings = read_json_object(folder / SETTINGS_FILE) | {"chat_template": chat_template(form)}
    (folder / SETTINGS_FILE).write_text(to_strict_json(settings, indent=1), "utf-8")


def chat_template(form: PromptFormat) -> str:
    """Returns the format as a Jinja template over ``messages``, which renders what tuning trained on."""
    if form.system:
        system = "{% if message.role == 'system' %}" + _filled(form.system, SYSTEM, "message.content") + "{% endif %}"
        asked = "message.content"
    else:
        system = "{% if message.role == 'system' %}{% set ns.system = message.content + '\\n\\n' %}{% endif %}"
        asked = "ns.system + message.content"
    user = (
        "{% if message.role == 'user' %}"
        + _filled(form.turn, INSTRUCTION, asked)
        + "{% set ns.system = '' %}{% endif %}"
    )
    answer = "{% if message.role == 'assistant' %}{{ message.content + " + _quoted(form.ending) + " }}{% endif %}"
    begin = "{% set ns = namespace(system='') %}{{ " + _quoted(form.introduction) + " }}"
    return begin + "{% for message in messages %}" + system + user + answer + "{% endfor %}"


def _filled(text: str, field: str, value: str) -> str:
    """Returns an expression of a text in which a field is replaced by a value."""
    return "{{ " + f" + ({value}) + ".join(map(_quoted, text.split(field))) + " }}"


def _quoted(text: str) -> str:
    """Returns a string of Jinja, which reads the escapes of JSON."""
    return json.dumps(text, ensure_ascii=False)
