"""The head and the settings of an exported classifier, and the whole of one of the transformers library.

Exported heads are divided by the temperature of the run, so that transformers gives the calibrated probabilities.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fromscratch.config.model import HuggingFaceConfig
from fromscratch.errors import UsageError
from fromscratch.formats.classifiers import CLASSIFIER_ENDING, SCORE, class_settings, known_temperature
from fromscratch.formats.model_sources import LoadedModel
from fromscratch.models.encoders import EncoderModel


def scores_of(loaded: LoadedModel) -> Tensor:
    """Returns the head's matrix [C, D], divided by the temperature."""
    return _calibrated(loaded, loaded.model.output_head.weight)


def _calibrated(loaded: LoadedModel, tensor: Tensor | nn.Module) -> Tensor:
    assert isinstance(tensor, Tensor)
    return (tensor.detach().cpu() / (known_temperature(loaded) or 1.0)).contiguous()


def classifier_settings(loaded: LoadedModel, architecture: str) -> dict[str, Any]:
    """Returns what a classifier's ``config.json`` has beside the sizes of its body.

    Args:
        architecture: the class of the language model with that body.
    """
    family = architecture.removesuffix("LMHeadModel").removesuffix("ForCausalLM")
    return {
        "architectures": [family + CLASSIFIER_ENDING],
        **class_settings(loaded.classes, loaded.tokenizer.end_of_text),
    }


def write_huggingface_classifier(loaded: LoadedModel, folder: Path) -> dict[str, Any]:
    """Writes a model of transformers as an ``AutoModelForSequenceClassification``; returns its ``config.json``.

    Raises:
        UsageError: transformers has no such class for the architecture, or one with another head.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    assert isinstance(loaded.config, HuggingFaceConfig)
    if isinstance(loaded.model, EncoderModel):
        return _write_encoder(loaded, loaded.model, folder)
    architecture = json.loads(loaded.config.architecture)
    settings = {**architecture, **class_settings(loaded.classes, loaded.tokenizer.end_of_text)}
    try:
        with torch.device("meta"):
            config = AutoConfig.for_model(**settings)
            classifier: Any = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    except ValueError:
        raise UsageError(f"transformers has no classifier of kind {architecture['model_type']!r}") from None
    body = f"{classifier.base_model_prefix}."
    tensors = {body + name: t for name, t in loaded.model.inner.base_model.state_dict().items()}  # type: ignore[union-attr]
    tensors[SCORE] = scores_of(loaded)
    if {name: t.shape for name, t in classifier.state_dict().items()} != {name: t.shape for name, t in tensors.items()}:
        raise UsageError(f"transformers' classifier of kind {architecture['model_type']!r} has another head")
    classifier.load_state_dict(tensors, assign=True)
    classifier.save_pretrained(folder)
    return {**settings, "architectures": [type(classifier).__name__], "dtype": "float32"}


def _write_encoder(loaded: LoadedModel, model: EncoderModel, folder: Path) -> dict[str, Any]:
    """Writes an encoder with its head; padding stays the one that it was pre-trained with."""
    last, pad_id = model.last_layer(), model.inner.config.pad_token_id
    tensors = {name: parameter.detach().cpu() for name, parameter in model.inner.named_parameters()}
    for name, parameter in model.inner.named_parameters():
        if any(parameter is own for own in last.parameters()):
            tensors[name] = _calibrated(loaded, parameter)
    model.inner.save_pretrained(folder, state_dict=tensors)
    architecture = {key: value for key, value in json.loads(loaded.config.architecture).items() if key != "dtype"}  # type: ignore[attr-defined]
    names = {"architectures": [type(model.inner).__name__], "dtype": "float32"}
    return {**architecture, **class_settings(loaded.classes, pad_id), **names}
