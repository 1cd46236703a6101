"""``ckpt.pt`` of nanoGPT: a pickle of tensors and plain values, read by the restricted reader only.

It has GPT-2's names with torch's linear layers (nothing transposed), a head that is always tied, and the
exact GELU (``nn.GELU()``). Its ``bias = False`` removes every bias, also those of the norms. Here these
biases become zeros, which compute the same.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from fromscratch.config.model import ExactGeluMLP, GPTConfig
from fromscratch.errors import DataError
from fromscratch.formats import gpt2
from fromscratch.formats.imported import ImportedModel
from fromscratch.formats.weights import as_fp32, read_pickle
from fromscratch.tokenizers.characters import META_FILE

LAYOUT = replace(gpt2.LAYOUT, format="nanoGPT", transposed=False, gelu="none")


def is_nanogpt(found: dict[str, Any]) -> bool:
    """Whether an unpickled file is such a checkpoint."""
    return isinstance(found.get("model"), dict) and isinstance(found.get("model_args"), dict)


def read_nanogpt(path: Path) -> ImportedModel:
    """Reads a ``ckpt.pt``. Raises DataError or UsageError where it is not a nanoGPT checkpoint."""
    found = read_pickle(path)
    if not is_nanogpt(found):
        raise DataError(f"{path}: not a nanoGPT checkpoint (it has no model and model_args)")
    has_bias = bool(found["model_args"].get("bias", True))
    config = _config(found["model_args"], path, has_bias=has_bias)
    tensors = LAYOUT.select(as_fp32(found["model"], path))
    model = LAYOUT.read(tensors, config, path, has_bias=has_bias)
    notes = ["nanoGPT uses the exact GELU: feedforward = exact-gelu-mlp"]
    if not has_bias:
        notes.append("the checkpoint has no biases; biases that the model here always has are zeros")
    tokenizer = _characters(path, found.get("config"))
    if tokenizer is not None:
        notes.append(f"its tokenizer is the characters of {tokenizer}; no id ends a text")
    return replace(model, notes=notes, tokenizer=tokenizer)


def _characters(path: Path, settings: Any) -> Path | None:
    """Finds the ``meta.pkl`` of a character-level model: beside the weights, or in nanoGPT's ``data/DATASET``."""
    dataset = settings.get("dataset") if isinstance(settings, dict) else None
    folders = [path.parent]
    if isinstance(dataset, str) and Path(dataset).name == dataset:
        folders.append(path.absolute().parent.parent / "data" / dataset)
    return next((folder / META_FILE for folder in folders if (folder / META_FILE).is_file()), None)


def _config(arguments: dict[str, Any], path: Path, *, has_bias: bool) -> GPTConfig:
    try:
        return GPTConfig(
            vocab_size=int(arguments["vocab_size"]),
            context_length=int(arguments["block_size"]),
            num_layers=int(arguments["n_layer"]),
            num_heads=int(arguments["n_head"]),
            embedding_dim=int(arguments["n_embd"]),
            dropout=float(arguments.get("dropout", 0.0)),
            attention_bias=has_bias,
            tied_head=True,
            feedforward=ExactGeluMLP(),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: its model_args are not nanoGPT's ({error!r})") from None
