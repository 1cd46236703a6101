"""Causal language models of the transformers library, in folders that ``save_pretrained`` or the Hub made."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from fromscratch.config.model import HuggingFaceConfig
from fromscratch.errors import DataError, UsageError
from fromscratch.formats.classifiers import take_score
from fromscratch.formats.imported import ImportedModel

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
PREFIX = "inner."
"""What our wrapper adds to the names of tensors."""


def is_causal_model(raw: dict[str, Any]) -> bool:
    """Whether a ``config.json`` names an architecture that the installed transformers library has as causal model."""
    if importlib.util.find_spec("transformers") is None or "model_type" not in raw:
        return False
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return raw["model_type"] in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and "auto_map" not in raw


def read_huggingface(folder: Path, raw: dict[str, Any], *, classes: tuple[str, ...] = ()) -> ImportedModel:
    """Reads the weights of safetensors files as fp32. Executes no code of the folder.

    Args:
        classes: those of a classifier; its body is that of the causal model of the same architecture.

    Raises:
        UsageError: its config does not name the length of its context.
        DataError: weights are missing or do not fit.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    auto_class = AutoModelForSequenceClassification if classes else AutoModelForCausalLM
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
        )
    except Exception as error:  # the library raises many kinds
        purpose = "classifier" if classes else "causal language model"
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{folder}: transformers cannot read it as a {purpose} ({first_line})") from None
    model, info = loaded
    if missing := sorted({*info["missing_keys"], *(item[0] for item in info["mismatched_keys"])}):
        raise DataError(f"{folder}: weights are missing or of another shape: {', '.join(missing[:5])}")
    text = config.get_text_config()
    length = next((getattr(text, key) for key in CONTEXT_KEYS if isinstance(getattr(text, key, None), int)), None)
    if length is None:
        raise UsageError(
            f"{folder}: its config.json does not name the length of its context ({', '.join(CONTEXT_KEYS)})"
        )
    own = HuggingFaceConfig(
        architecture=json.dumps(raw, sort_keys=True), vocab_size=text.vocab_size, context_length=length
    )
    tensors = {PREFIX + name: parameter.detach() for name, parameter in model.named_parameters()}
    score = take_score(tensors, folder, PREFIX) if classes else None
    return ImportedModel("transformers", own, tensors, classes=classes, score=score)
