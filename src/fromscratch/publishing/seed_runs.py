"""The ``model.json`` and ``train.json`` of run folders of the seed project, as a run file of ours."""

import json
from typing import Any

import tomli_w

MODEL_JSON, TRAIN_JSON = "model.json", "train.json"
MODEL_KEYS = {
    "vocab_size": "vocab_size",
    "context_length": "context_length",
    "emb_dim": "embedding_dim",
    "n_heads": "num_heads",
    "n_layers": "num_layers",
    "drop_rate": "dropout",
    "qkv_bias": "attention_bias",
}
TRAIN_KEYS = {
    "learning_rate": ("train", "optimizer", "learning_rate"),
    "weight_decay": ("train", "optimizer", "weight_decay"),
    "clipping_max_norm": ("train", "clip", "max_norm"),
    "global_batch_size": ("train", "global_batch"),
    "seed": ("train", "seed"),
    "validation_interval": ("train", "evaluate_every"),
    "min_train_tokens": ("data", "tokens"),
    "start_train_token": ("data", "start_token"),
    "dataset": ("data", "store"),
}
MACHINE_KEYS = ("microbatch_size", "micro_batch_size")  # no science: found at start-up


def run_file_of(model: dict[str, Any], train: dict[str, Any]) -> tuple[str, list[str]]:
    """The run file's text, and the settings that have no counterpart (they stand in it as comments)."""
    tables: dict[str, Any] = {"model": {}, "data": {}, "train": {"optimizer": {"kind": "adamw", "decay": "all"}}}
    unknown = {}
    for key, value in model.items():
        if key in MODEL_KEYS:
            tables["model"][MODEL_KEYS[key]] = value
        else:
            unknown[key] = value
    tables["model"]["tied_head"] = bool(model.get("tie_weights", False))
    unknown.pop("tie_weights", None)
    for key, value in train.items():
        if key in TRAIN_KEYS and value is not None:
            _put(tables, TRAIN_KEYS[key], value)
        elif key not in MACHINE_KEYS and value is not None:
            unknown[key] = value
    if "clip" in tables["train"]:
        tables["train"]["clip"]["kind"] = "norm"
    comments = "".join(f"# not converted: {key} = {json.dumps(value)}\n" for key, value in unknown.items())
    return comments + tomli_w.dumps(tables), list(unknown)


def _put(tables: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    for key in keys[:-1]:
        tables = tables.setdefault(key, {})
    tables[keys[-1]] = value
