"""Run folders of the seed project (``gpjt/ddp-base-model-from-scratch``): settings and checkpoints.

A run folder holds ``model.json``, ``train.json`` and ``checkpoints/<time>-iteration-N/model.safetensors``,
with links ``best`` and ``latest``. The settings become a run file of ours. What its training script fixes
in code stands here as constants (its ``ddp_train.py``), because a run file says everything.
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
CONVERTED_OTHERWISE = (
    "microbatch_size",
    "minibatch_size",
    "gradient_accumulation_steps",
    "dataset",
    "min_train_tokens",
    "validation_interval",
    "schedule_learning_rate",
    "warmup_period_percent",
    "use_amp",
)
OPTIMIZER = {"kind": "adamw", "learning_rate": 4e-4, "weight_decay": 0.1, "decay": "all", "beta1": 0.9, "beta2": 0.999}
LOWEST_RATE_SHARE = 0.1  # where the cosine ends
PROCESSES_IN_NAME = re.compile(r"(\d+)x")  # "8xa100m40-baseline" ran on eight


def run_file_of(model: dict[str, Any], train: dict[str, Any], *, name: str = "") -> tuple[str, list[str]]:
    """The run file's text, and what a person should know about it.

    Args:
        name: of the run folder; it begins with the number of processes, which no file records.
    """
    known = {ours: model[theirs] for theirs, ours in MODEL_KEYS.items() if theirs in model}
    tables: dict[str, Any] = {
        "model": {"tied_head": False, **known, "init": {"kind": "torch"}},
        "data": {"store": _store(train)} if "dataset" in train else {},
        "train": {
            "precision": "fp16" if train.get("use_amp", True) else "tf32",
            "evaluate_every": train.get("validation_interval", 0),
            "optimizer": dict(OPTIMIZER),
        },
    }
    for key, place in TRAIN_KEYS.items():
        if train.get(key) is not None:
            _put(tables, place, train[key])
    if "validation_interval" in train:  # in early runs it was both
        tables["train"].setdefault("checkpoint_every", train["validation_interval"])
    if "clip" in tables["train"]:
        tables["train"]["clip"]["kind"] = "norm"
    tokens = train.get("min_train_tokens")
    if tokens is not None:
        tables["data"]["tokens"] = "all" if tokens == -1 else tokens
    notes = [_put_global_batch(tables, train, name), _put_schedule(tables, model, train)]
    unknown = {key: value for key, value in model.items() if key not in MODEL_KEYS}
    unknown |= {k: v for k, v in train.items() if k not in TRAIN_KEYS and k not in CONVERTED_OTHERWISE}
    comments = "".join(f"# not converted: {key} = {json.dumps(value)}\n" for key, value in unknown.items())
    if unknown:
        notes.append(f"settings that have no counterpart here stand in the run file as comments: {', '.join(unknown)}")
    said = [note for note in notes if note]
    return comments + "".join(f"# {note}\n" for note in said) + tomli_w.dumps(tables), said


def _store(train: dict[str, Any]) -> str:
    """Data sets are named by their repository on the Hub."""
    return f"hf://{train['dataset']}"


def _put_global_batch(tables: dict[str, Any], train: dict[str, Any], name: str) -> str | None:
    micro_batch = train.get("microbatch_size", train.get("minibatch_size"))
    if micro_batch is None:
        return None
    passes = train.get("gradient_accumulation_steps", 1)
    found = PROCESSES_IN_NAME.match(name)
    if found is None:
        return (
            f"global_batch is not converted: it was {micro_batch * passes} sequences times the number of processes, "
            "which no file records"
        )
    processes = int(found.group(1))
    tables["train"]["global_batch"] = micro_batch * passes * processes
    return f"global_batch is {micro_batch * passes} sequences times {processes} processes, by the run's name"


def _put_schedule(tables: dict[str, Any], model: dict[str, Any], train: dict[str, Any]) -> str | None:
    if not train.get("schedule_learning_rate", False):
        return None
    rate = tables["train"]["optimizer"]["learning_rate"]
    schedule = {"kind": "warmup-cosine", "min_learning_rate": rate * LOWEST_RATE_SHARE}
    tables["train"]["schedule"] = schedule
    percent = train.get("warmup_period_percent", 0)
    batch, tokens = tables["train"].get("global_batch"), tables["data"].get("tokens")
    if not percent:
        return None
    if batch is None or not isinstance(tokens, int) or "context_length" not in model:
        return f"warmup_steps is not converted: it was {percent}% of the steps"
    num_steps = -(-tokens // (batch * model["context_length"]))
    schedule["warmup_steps"] = num_steps * percent // 100
    return None


def _put(tables: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    for key in keys[:-1]:
        tables = tables.setdefault(key, {})
    tables[keys[-1]] = value
