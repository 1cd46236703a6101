"""A very small world to train in: a store of made-up sentences and a run file of a few dozen steps."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fromscratch.data.prepare import SplitRule, prepare_store
from fromscratch.data.store import TokenStore
from fromscratch.runs.directory import RunDirectory
from fromscratch.session.placement import MachineOptions, place_run
from fromscratch.session.plan import plan_run
from fromscratch.session.run import RunSummary, run_training
from fromscratch.sources.base import InMemory
from fromscratch.tokenizers.bytes import BytesTokenizer
from fromscratch.training.observers import Observer

SENTENCE = "the cat dog sees hears likes a small large red house tree and or but then never often"
WORDS = SENTENCE.split()
SMALL_RUN: dict[str, Any] = {
    "model": {"context_length": 16, "num_layers": 2, "num_heads": 2, "embedding_dim": 16, "dropout": 0.2},
    "data": {"store": "store", "tokens": 20 * 8 * 16},
    "train": {
        "global_batch": 8,
        "precision": "fp32",
        "evaluate_every": 5,
        "checkpoint_every": 5,
        "optimizer": {"kind": "adamw", "learning_rate": 0.01},
        "schedule": {"kind": "linear", "warmup_steps": 3},
        "clip": {"kind": "norm", "max_norm": 1.0},
    },
    "eval": {"tokens": 320},
}


def make_store(path: Path, *, documents: int = 200, seed: int = 0) -> TokenStore:
    """A byte-level store of sentences made of few words, a tenth of them held out."""
    rng = random.Random(seed)
    texts = tuple(" ".join(rng.choices(WORDS, k=12)) + f" {i}." for i in range(documents))
    return prepare_store([InMemory("sentences", texts)], BytesTokenizer(), path, rule=SplitRule(0.1))


def write_run_file(folder: Path, name: str = "small", **tables: dict[str, Any]) -> Path:
    """The small run file with some keys changed, its store beside it."""
    if not (folder / "store").exists():
        make_store(folder / "store")
    values = {table: {**SMALL_RUN[table], **tables.get(table, {})} for table in SMALL_RUN}
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(values))
    return path


def enter_copy(trained: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies what a test may change into a folder, which becomes the current one."""
    shutil.copytree(trained, folder, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(folder)
    return folder


def run_small(
    file: Path,
    *,
    name: str = "run",
    micro_batch: int | None = None,
    stop_after: int | None = None,
    overrides: list[str] | None = None,
    observers: list[Observer] | None = None,
    machine: dict[str, Any] | None = None,
) -> tuple[RunDirectory, RunSummary]:
    """Trains what a run file says in ``runs/<name>`` beside it, as the train verb does."""
    plan = plan_run(file, overrides)
    path = file.parent / "runs" / name
    placement = place_run(
        plan, RunDirectory(path), MachineOptions(device="cpu", micro_batch=micro_batch, **(machine or {}))
    )
    summary = run_training(plan, path, placement, observers=observers or [], stop_after=stop_after)
    return RunDirectory(path), summary
