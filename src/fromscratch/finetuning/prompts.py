"""``--format`` on the command line: a prompt format by its name, as a template, or in a TOML file."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fromscratch.config.loading import read_toml
from fromscratch.config.problems import error_messages
from fromscratch.config.prompts import PROMPT_FORMATS, PromptFormat, named_format
from fromscratch.errors import UsageError
from fromscratch.formats.model_sources import LoadedModel


def read_prompt_format(text: str) -> Any:
    """Returns the value of ``tune.prompt``: a TOML file is read; a name or a template is left to validation.

    Raises:
        UsageError: the file is not valid TOML.
    """
    is_file = text not in PROMPT_FORMATS and (text.endswith(".toml") or ("{" not in text and Path(text).is_file()))
    return read_toml(Path(text)) if is_file else text


def prompt_format_for(loaded: LoadedModel, wanted: str | None) -> PromptFormat:
    """Returns the wanted format, else that of the model's tuning. Raises UsageError where there is none."""
    form = loaded.prompt_format if wanted is None else open_prompt_format(wanted)
    if form is None:
        raise UsageError(
            f"model {loaded.source}: does not say which prompt format it was tuned with; give --format, such as alpaca"
        )
    return form


def open_prompt_format(text: str) -> PromptFormat:
    """Returns the format. Raises UsageError if there is none of that name, or it is not valid."""
    try:
        return PromptFormat.model_validate(named_format(read_prompt_format(text)))
    except ValidationError as error:
        raise UsageError(f"--format {text[:80]}: {'; '.join(error_messages(error, PromptFormat))}") from None
    except ValueError as error:
        raise UsageError(f"--format: {error}") from None
