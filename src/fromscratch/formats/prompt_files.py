"""The prompt format beside the weights of a published model."""

from pathlib import Path

from pydantic import ValidationError

from fromscratch.config.prompts import PromptFormat
from fromscratch.errors import DataError
from fromscratch.files import read_json_object

PROMPT_FILE = "prompt_format.json"


def read_prompt_format(folder: Path) -> PromptFormat | None:
    """Reads the prompt format of a folder of weights; None if it has none. Raises DataError if it is not valid."""
    if not (folder / PROMPT_FILE).is_file():
        return None
    try:
        return PromptFormat.model_validate(read_json_object(folder / PROMPT_FILE))
    except ValidationError as error:
        raise DataError(f"{folder / PROMPT_FILE}: not a prompt format ({error.errors()[0]['msg']})") from None
