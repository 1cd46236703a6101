"""Run folders of the seed project (``gpjt/ddp-base-model-from-scratch``): settings and checkpoints.

A run folder holds ``model.json``, ``train.json`` and ``checkpoints/<time>-iteration-N/model.safetensors``,
with links ``best`` and ``latest``. The settings become a run file of ours. The constants of its training
script (``ddp_train.py``) are constants here, because a run file contains all settings.
"""

import json
import re
from pathlib import Path
from typing import Any

import tomli_w

MODEL_JSON, TRAIN_JSON = "model.json", "train.json"
BEST_CHECKPOINT = Path("checkpoints") / "best"
MODEL_KEYS = {
    "vocab_size": "vocab_size",
    "context_length": "context_length",
    "emb_dim": "embedding_dim",
    "n_heads": "num_heads",
    "n_layers": "num_layers",
    "drop_rate": "dropout",
    "qkv_bias": "attention_bias",
    "tie_weights": "tied_head",
}
TRAIN_KEYS = {
    "learning_rate": ("train", "optimizer", "learning_rate"),
    "weight_decay": ("train", "optimizer", "weight_decay"),
    "clipping_max_norm": ("train", "clip", "max_norm"),
    "checkpoint_interval": ("train", "checkpoint_every"),
    "start_train_token": ("data", "start_token"),
    "start_val_token": ("eval", "start"),
}
OTHER_TRAIN_KEYS = {
    "microbatch_size",
    "minibatch_size",
    "gradient_accumulation_steps",
    "dataset",
    "min_train_tokens",
    "validation_interval",
    "schedule_learning_rate",
    "warmup_period_percent",
    "use_amp",
}
OPTIMIZER = {"kind": "adamw", "learning_rate": 4e-4, "weight_decay": 0.1, "decay": "all", "beta1": 0.9, "beta2": 0.999}
MIN_LEARNING_RATE_FACTOR = 0.1  # the end of the cosine
NUM_PROCESSES = re.compile(r"(\d+)x")  # "8xa100m40-baseline" ran with eight processes


def convert_settings(model: dict[str, Any], train: dict[str, Any], *, name: str = "") -> tuple[str, list[str]]:
    """Returns the text of the run file, and notes for the user.

    Args:
        name: name of the run folder. It begins with the number of processes, which no file records.
    """
    known = {ours: model[theirs] for theirs, ours in MODEL_KEYS.items() if theirs in model}
    tables: dict[str, Any] = {
        "model": {"tied_head": False, **known, "init": {"kind": "torch"}},
        "data": {"store": f"hf://{train['dataset']}"} if "dataset" in train else {},
        "train": {
            "precision": "fp16" if train.get("use_amp", True) else "tf32",
            "evaluate_every": train.get("validation_interval", 0),
            "optimizer": dict(OPTIMIZER),
        },
    }
    for key, (*parents, last) in TRAIN_KEYS.items():
        if train.get(key) is not None:
            table = tables
            for parent in parents:
                table = table.setdefault(parent, {})
            table[last] = train[key]
    if "validation_interval" in train:  # early runs also saved checkpoints at this interval
        tables["train"].setdefault("checkpoint_every", train["validation_interval"])
    if "clip" in tables["train"]:
        tables["train"]["clip"]["kind"] = "norm"
    tokens = train.get("min_train_tokens")
    if tokens is not None:
        tables["data"]["tokens"] = "all" if tokens == -1 else tokens
    notes = [_add_global_batch(tables, train, name), _add_schedule(tables, model, train)]
    unknown = {key: value for key, value in model.items() if key not in MODEL_KEYS}
    unknown |= {key: train[key] for key in train if key not in TRAIN_KEYS.keys() | OTHER_TRAIN_KEYS}
    comments = "".join(f"# not converted: {key} = {json.dumps(value)}\n" for key, value in unknown.items())
    if unknown:
        notes.append(f"settings without an equivalent here are comments in the run file: {', '.join(unknown)}")
    given = [note for note in notes if note]
    return comments + "".join(f"# {note}\n" for note in given) + tomli_w.dumps(tables), given


def _add_global_batch(tables: dict[str, Any], train: dict[str, Any], name: str) -> str | None:
    micro_batch = train.get("microbatch_size", train.get("minibatch_size"))
    if micro_batch is None:
        return None
    per_process = micro_batch * train.get("gradient_accumulation_steps", 1)
    found = NUM_PROCESSES.match(name)
    if found is None:
        return (
            f"global_batch is not converted: it was {per_process} sequences times the number of processes, "
            "which no file records"
        )
    num_processes = int(found.group(1))
    tables["train"]["global_batch"] = per_process * num_processes
    return f"global_batch is {per_process} sequences times {num_processes} processes, according to the run's name"


def _add_schedule(tables: dict[str, Any], model: dict[str, Any], train: dict[str, Any]) -> str | None:
    if not train.get("schedule_learning_rate", False):
        return None
    min_learning_rate = tables["train"]["optimizer"]["learning_rate"] * MIN_LEARNING_RATE_FACTOR
    schedule = tables["train"]["schedule"] = {"kind": "warmup-cosine", "min_learning_rate": min_learning_rate}
    percent = train.get("warmup_period_percent", 0)
    batch, tokens = tables["train"].get("global_batch"), tables["data"].get("tokens")
    if not percent:
        return None
    if batch is None or not isinstance(tokens, int) or "context_length" not in model:
        return f"warmup_steps is not converted: it was {percent}% of the steps"
    num_steps = -(-tokens // (batch * model["context_length"]))
    schedule["warmup_steps"] = num_steps * percent // 100
    return None
