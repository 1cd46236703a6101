"""A very small base model and records to tune it on."""

import json
from pathlib import Path
from typing import Any

from fromscratch.runs.directory import RunDirectory
from fromscratch.session.placement import MachineOptions, place_run
from fromscratch.session.run import RunSummary, run_training
from fromscratch.session.tuning import plan_tuning, tuning_config
from fromscratch.training.observers import Observer
from tests.small import run_small, write_run_file

WORDS = ["cat", "dog", "house", "tree", "red", "large"]
FORMAT = "Q {instruction} {input} A "
SETTINGS: dict[str, dict[str, Any]] = {
    "data": {"store": "records.json", "tokens": "all", "epochs": 4},
    "train": {
        "start_from": {"model": "base"},
        "global_batch": 8,
        "precision": "fp32",
        "optimizer": {"kind": "adamw", "learning_rate": 0.003},
    },
    "tune": {"kind": "instruct", "prompt": FORMAT},
}


def make_base(folder: Path) -> None:
    """Trains ``runs/base`` in the folder, with dropout and a context of 96 bytes, and writes ``records.json``."""
    run_small(write_run_file(folder, model={"context_length": 96}), name="base", overrides=["data.tokens=7680"])
    (folder / "records.json").write_text(json.dumps(make_records()))


def make_records() -> list[dict[str, Any]]:
    """Sixty different records of different lengths, half of them with an input."""
    return [
        {
            "instruction": f"Say {word} {number}.",
            "input": "now" if number % 2 else "",
            "output": f"{word} " * (number % 4 + 1),
        }
        for word in WORDS
        for number in range(10)
    ]


def tune(
    folder: Path,
    name: str,
    *overrides: str,
    stop_after: int | None = None,
    micro_batch: int | None = None,
    observers: tuple[Observer, ...] = (),
) -> tuple[RunDirectory, RunSummary]:
    """Tunes ``runs/base`` in ``runs/<name>``, as the verb does, with some keys changed."""
    config = tuning_config(SETTINGS, list(overrides), "test")
    plan = plan_tuning(config, dict.fromkeys(("data.store", "train.start_from"), folder), "test")
    path = folder / "runs" / name
    placement = place_run(plan, RunDirectory(path), MachineOptions(device="cpu", micro_batch=micro_batch))
    return RunDirectory(path), run_training(plan, path, placement, observers=list(observers), stop_after=stop_after)
