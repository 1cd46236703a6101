"""Exports a model as a folder that the transformers library loads, in one of two formats.

``native`` is an architecture of transformers (GPT-2, Llama, Mistral, Mixtral, Qwen2, Qwen3), without code.
``custom`` contains our own model files with an interface for transformers, for every architecture.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from fromscratch.config.model import GPTConfig, HuggingFaceConfig, ModelConfig
from fromscratch.config.recurrent import RecurrentConfig
from fromscratch.errors import UsageError
from fromscratch.files import check_replaceable, sealed_folder, to_strict_json
from fromscratch.formats.classifiers import SCORE
from fromscratch.formats.gpt2 import not_gpt2
from fromscratch.formats.layouts import HEAD
from fromscratch.formats.llama_config import not_llama
from fromscratch.formats.model_sources import LoadedModel
from fromscratch.formats.published import MODEL_TYPE, TABLE_KEY, to_published_tensors
from fromscratch.formats.weights import SAFETENSORS, model_tensors
from fromscratch.publishing.card import CardSettings, write_card
from fromscratch.publishing.classifiers import classifier_settings, scores_of, write_huggingface_classifier
from fromscratch.publishing.model_code import model_code_files
from fromscratch.publishing.native import native_config, native_tensors
from fromscratch.publishing.prompt_files import write_prompt_format
from fromscratch.publishing.tokenizer_files import write_tokenizer

NATIVE, CUSTOM = "native", "custom"
PUBLISHED = "published"
"""The beginning of the ``kind`` in the manifests of exported folders; the format follows."""
FORMATS = (NATIVE, CUSTOM)
UNLIMITED = int(1e30)
"""How transformers writes the length of a tokenizer's texts where there is no limit."""
AUTO_CLASSES = {
    "AutoConfig": "configuration_fromscratch.FromScratchConfig",
    "AutoModel": "modeling_fromscratch.FromScratchModel",
    "AutoModelForCausalLM": "modeling_fromscratch.FromScratchForCausalLM",
    "AutoModelForSequenceClassification": "modeling_fromscratch.FromScratchForSequenceClassification",
}


@dataclass(frozen=True)
class ExportReport:
    """Report of an export."""

    folder: str
    format: str
    files: dict[str, int]
    """Sizes in bytes, by file name."""


def choose_format(config: ModelConfig, wanted: str | None) -> str:
    """Returns the wanted format; by default ``native`` if the architecture permits it, else ``custom``.

    Raises:
        UsageError: no such format, the kind has no export, or ``native`` is wanted and transformers has no such
            architecture.
    """
    if isinstance(config, HuggingFaceConfig):
        if wanted not in (None, NATIVE):
            raise UsageError(f"--format {wanted}: a model of the transformers library is published as {NATIVE}")
        return NATIVE
    if isinstance(config, RecurrentConfig):
        if wanted not in (None, CUSTOM):
            raise UsageError(f"--format {wanted}: transformers has no recurrent language model; use --format {CUSTOM}")
        return CUSTOM
    if not isinstance(config, GPTConfig):
        raise UsageError(f"a model of kind {config.kind!r} cannot be published yet; gpt, lstm, gru and rnn can")
    other_than_gpt2, other_than_llama = not_gpt2(config), not_llama(config)
    is_native = not (other_than_gpt2 and other_than_llama)
    if wanted is None:
        return NATIVE if is_native else CUSTOM
    if wanted not in FORMATS:
        raise UsageError(f"--format {wanted}: must be {' or '.join(FORMATS)}")
    if wanted == NATIVE and not is_native:
        raise UsageError(
            f"--format native: the model is neither GPT-2-shaped ({other_than_gpt2}) nor Llama-shaped "
            f"({other_than_llama}); use --format custom"
        )
    return wanted


def export_model(loaded: LoadedModel, folder: Path, *, format_name: str, card: CardSettings) -> ExportReport:
    """Writes the folder atomically; replaces only an older export, to which nothing was added or changed.

    Raises:
        UsageError: the folder holds something else, or the model has no export.
    """
    loaded.tokenizer.check_end_of_text("a published model needs; it cannot be published")
    folder = folder.expanduser().resolve()
    with sealed_folder(folder, kind=f"{PUBLISHED}-{format_name}") as temporary:
        config = _write_weights(loaded, temporary, format_name)
        ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), loaded.tokenizer.end_of_text)
        files = {"config.json": {**ids, **config}}
        if not loaded.classes:
            sampling = {"do_sample": True, "temperature": 0.8, "top_k": 50}
            cache = {} if config.get("use_cache", True) else {"use_cache": False}
            files["generation_config.json"] = ids | sampling | cache
        for name, values in files.items():
            (temporary / name).write_text(to_strict_json(values, indent=2), "utf-8")
        side = "right" if loaded.classes else "left"
        write_tokenizer(
            loaded.tokenizer,
            temporary,
            context_length=UNLIMITED if loaded.model.has_unlimited_context else loaded.config.context_length,
            padding_side=side,
            pad_id=config.get("pad_token_id") if loaded.model.is_encoder else None,
            is_framed=loaded.model.is_encoder,
        )
        if loaded.prompt_format:
            write_prompt_format(loaded.prompt_format, temporary)
        named = replace(card, repository=card.repository or folder.name)
        write_card(temporary, loaded, named, format_name)
        check_replaceable(folder, PUBLISHED, option="--to")  # right before it is replaced
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return ExportReport(str(folder), format_name, sizes)


def _write_weights(loaded: LoadedModel, folder: Path, format_name: str) -> dict[str, Any]:
    """Writes the weights, and the code that the format needs; returns the content of ``config.json``."""
    if isinstance(loaded.config, HuggingFaceConfig) and loaded.classes:
        return write_huggingface_classifier(loaded, folder)
    if isinstance(loaded.config, HuggingFaceConfig):
        loaded.model.inner.save_pretrained(folder)  # type: ignore[operator, union-attr]
        return {**json.loads(loaded.config.architecture), "dtype": "float32"}
    model_config = loaded.config
    assert isinstance(model_config, GPTConfig | RecurrentConfig)
    tensors = {name: tensor.cpu() for name, tensor in model_tensors(loaded.model).items()}
    score = {SCORE: scores_of(loaded)} if loaded.classes else {}
    if score:
        del tensors[HEAD]
        if isinstance(model_config, GPTConfig):
            model_config = model_config.model_copy(update={"tied_head": True})  # no language head is stored
    if format_name == NATIVE and isinstance(model_config, GPTConfig):
        config, tensors = native_config(model_config), native_tensors(model_config, tensors)
    else:
        config, tensors = custom_config(model_config), to_published_tensors(tensors, model_config)
        for name, text in model_code_files(model_config).items():
            (folder / name).write_text(text, "utf-8")
    if score:
        config |= classifier_settings(loaded, config["architectures"][0])
    save_file({**tensors, **score}, folder / SAFETENSORS, metadata={"format": "pt"})
    return config


def custom_config(config: GPTConfig | RecurrentConfig) -> dict[str, Any]:
    """Returns the ``config.json`` with the names of the folder's classes and the whole ``[model]`` table."""
    sizes = _recurrent_sizes(config) if isinstance(config, RecurrentConfig) else _gpt_sizes(config)
    return {
        "architectures": ["FromScratchForCausalLM"],
        "model_type": MODEL_TYPE,
        "auto_map": AUTO_CLASSES,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "num_hidden_layers": config.num_layers,
        "dropout": config.dropout,
        **sizes,
        "dtype": "float32",
        TABLE_KEY: config.model_dump(mode="json", exclude_none=True),
    }


def _gpt_sizes(config: GPTConfig) -> dict[str, Any]:
    return {
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": getattr(config.attention, "key_value_heads", None) or config.num_heads,
        "hidden_size": config.embedding_dim,
        "attention_bias": config.attention_bias,
        "tie_word_embeddings": config.tied_head,
        "residual_dtype": config.residual_dtype,
        "head_dim": config.head_channels,
    }


def _recurrent_sizes(config: RecurrentConfig) -> dict[str, Any]:
    return {"hidden_size": config.hidden_dim, "tie_word_embeddings": False, "use_cache": False}
