"""The head and the settings of an exported classifier, and the whole of one of the transformers library.

Exported heads are divided by the temperature of the run, so that transformers gives the calibrated probabilities.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fromscratch.config.model import HuggingFaceConfig
from fromscratch.errors import UsageError
from fromscratch.formats.classifiers import CLASSIFIER_ENDING, SCORE, class_settings, known_temperature
from fromscratch.formats.model_sources import LoadedModel


def scores_of(loaded: LoadedModel) -> Tensor:
    """Returns the head's matrix [C, D], divided by the temperature."""
    weight = loaded.model.output_head.weight
    assert isinstance(weight, Tensor)
    return (weight.detach().cpu() / (known_temperature(loaded) or 1.0)).contiguous()


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
