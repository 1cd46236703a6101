"""Causal models and encoders of the transformers library, in folders that ``save_pretrained`` or the Hub made."""

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import torch

from fromscratch.config.model import HuggingFaceConfig
from fromscratch.errors import DataError, UsageError
from fromscratch.files import shortened
from fromscratch.formats.classifiers import take_score
from fromscratch.formats.imported import ImportedModel
from fromscratch.formats.weights import first_head_weights
from fromscratch.models.encoders import is_encoder
from fromscratch.randomness import derive_seed

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
PREFIX = "inner."
"""What our wrapper adds to the names of tensors."""


def is_causal_model(raw: dict[str, Any]) -> bool:
    """Whether a ``config.json`` names an architecture that the installed transformers library has as causal model."""
    if importlib.util.find_spec("transformers") is None or "model_type" not in raw:
        return False
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return raw["model_type"] in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and "auto_map" not in raw


def is_encoder_model(raw: dict[str, Any]) -> bool:
    """Whether a ``config.json`` names an encoder that the installed transformers library has as classifier."""
    return importlib.util.find_spec("transformers") is not None and is_encoder(raw)


def read_huggingface(folder: Path, raw: dict[str, Any], *, classes: tuple[str, ...] = ()) -> ImportedModel:
    """Reads the weights of safetensors files as fp32. Executes no code of the folder.

    Args:
        classes: those of a classifier; its body is that of the causal model of the same architecture.

    Raises:
        UsageError: its config does not name the length of its context.
        DataError: weights are missing or do not fit.
    """
    model, missing, unused = _load(folder, is_classifier=bool(classes))
    _check_missing(folder, missing)
    tensors = {PREFIX + name: parameter.detach() for name, parameter in model.named_parameters()}
    score = take_score(tensors, folder, PREFIX) if classes else None
    config, notes = _config_of(folder, raw, model), _notes_of(unused)
    return ImportedModel("transformers", config, tensors, classes=classes, score=score, notes=notes)


def read_encoder(folder: Path, raw: dict[str, Any], *, classes: tuple[str, ...] = ()) -> ImportedModel:
    """As ``read_huggingface``, of an encoder. One that is no classifier yet gets a head, and a pooler if it has none.

    The new weights are the same each time. ``finetune classify`` draws the head again, by its seed.
    """
    model, missing, unused = _load(folder, is_classifier=True)
    body = f"{model.base_model_prefix}."
    is_new = {name: not name.startswith(body) or name.startswith(f"{body}pooler.") for name in missing}
    _check_missing(folder, [name for name in missing if classes or not is_new[name]])
    generator = torch.Generator().manual_seed(derive_seed(0, "encoder-head"))
    tensors = {
        PREFIX + name: first_head_weights(name, parameter.shape, generator) if name in is_new else parameter.detach()
        for name, parameter in model.named_parameters()
    }
    notes = _notes_of([name for name in unused if name.startswith(body)])  # its other head is replaced
    return ImportedModel("transformers", _config_of(folder, raw, model), tensors, classes=classes, notes=notes)


def _load(folder: Path, *, is_classifier: bool) -> tuple[Any, list[str], list[str]]:
    """Returns the model, the weights that the folder lacks or has in another shape, and those that have no place."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils import logging as their_logging

    verbosity, has_bars = their_logging.get_verbosity(), their_logging.is_progress_bar_enabled()
    their_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    their_logging.set_verbosity(logging.ERROR)  # missing weights are told below
    auto_class = AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        loaded: Any = auto_class.from_pretrained(
            folder,
            config=config,
            dtype="float32",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, by name
        )
    except Exception as error:  # the library raises many kinds
        purpose = "classifier" if is_classifier else "causal language model"
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{folder}: transformers cannot read it as a {purpose} ({first_line})") from None
    finally:
        their_logging.set_verbosity(verbosity)
        if has_bars:
            their_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    model, info = loaded
    missing = {*info["missing_keys"], *(item[0] for item in info["mismatched_keys"])}
    return model, sorted(missing), sorted(info["unexpected_keys"])


def _check_missing(folder: Path, missing: list[str]) -> None:
    if missing:
        raise DataError(f"{folder}: weights are missing or of another shape: {', '.join(missing[:5])}")


def _notes_of(unused: list[str]) -> list[str]:
    if not unused:
        return []
    return [f"{len(unused):,} weights of the folder have no place in the model of its config.json: {shortened(unused)}"]


def _config_of(folder: Path, raw: dict[str, Any], model: Any) -> HuggingFaceConfig:
    text = model.config.get_text_config()
    length = next((getattr(text, key) for key in CONTEXT_KEYS if isinstance(getattr(text, key, None), int)), None)
    if length is None:
        raise UsageError(
            f"{folder}: its config.json does not name the length of its context ({', '.join(CONTEXT_KEYS)})"
        )
    for name, table in model.named_modules():
        if name.endswith("position_embeddings") and getattr(table, "padding_idx", None) is not None:
            length -= table.padding_idx + 1  # RoBERTa counts its positions from there
    return HuggingFaceConfig(
        architecture=json.dumps(raw, sort_keys=True), vocab_size=text.vocab_size, context_length=length
    )
