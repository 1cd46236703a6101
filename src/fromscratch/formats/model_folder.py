"""A model without a run, in our own format; ``fromscratch import`` writes it.

The folder holds ``model.toml`` (the ``[model]`` table), ``model.safetensors``, ``tokenizer/``, ``origin.json``
(the source of the weights) and a manifest with checksums.
"""

import tomllib
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError
from safetensors.torch import save_file

from fromscratch.config.model import ModelConfig
from fromscratch.config.run import parse_model
from fromscratch.errors import DataError
from fromscratch.files import check_replaceable, sealed_folder, to_strict_json, verify_folder
from fromscratch.formats.imported import ImportedModel
from fromscratch.formats.weights import SAFETENSORS, model_tensors, read_weights
from fromscratch.models.language_model import LanguageModel
from fromscratch.tokenizers.base import Tokenizer

CONFIG_FILE, ORIGIN_FILE, TOKENIZER_FOLDER = "model.toml", "origin.json", "tokenizer"


def write_model_folder(
    folder: Path, config: ModelConfig, model: LanguageModel, tokenizer: Tokenizer, origin: dict[str, Any]
) -> None:
    """Writes the folder atomically. Raises UsageError if there is one with content."""
    with sealed_folder(folder, kind="model") as temporary:
        table = {"model": config.model_dump(mode="json", exclude_none=True)}
        (temporary / CONFIG_FILE).write_text(tomli_w.dumps(table), "utf-8")
        save_file(model_tensors(model), temporary / SAFETENSORS)
        (temporary / ORIGIN_FILE).write_text(to_strict_json(origin, indent=1), "utf-8")
        tokenizer.save(temporary / TOKENIZER_FOLDER)
        check_replaceable(folder, None, option="--out")  # right before it is replaced


def is_model_folder(folder: Path) -> bool:
    """Whether a folder has this format."""
    return (folder / CONFIG_FILE).is_file()


def read_model_folder(folder: Path) -> ImportedModel:
    """Reads a model folder. Raises DataError where it is damaged or of a newer version."""
    verify_folder(folder)
    try:
        config = parse_model(tomllib.loads((folder / CONFIG_FILE).read_text("utf-8"))["model"])
    except (ValidationError, ValueError, KeyError) as error:
        raise DataError(f"{folder / CONFIG_FILE}: not a model that this version supports ({error})") from None
    return ImportedModel("fromscratch", config, read_weights(folder))
