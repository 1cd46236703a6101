"""MODEL on the command line: anything that names trained weights, opened as a model and its tokenizer.

A run (its best checkpoint), ``run@latest``, ``run@best``, ``run@step-617``, or a checkpoint folder.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from fromscratch.config.loading import parse_run_config, read_toml
from fromscratch.config.run import RunConfig
from fromscratch.errors import DataError, UsageError
from fromscratch.files import verify_folder
from fromscratch.models.factory import build_empty
from fromscratch.models.gpt import GPT
from fromscratch.runs.directory import RunDirectory, find_run
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.tokenizers.loading import load as load_tokenizer
from fromscratch.training.checkpoints import (
    BEST,
    STATE_FILE,
    checkpoints_in,
    load_model_tensors,
    newest_valid,
    read_state,
)
from fromscratch.training.hardware import Hardware

STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class LoadedModel:
    """A trained model, in evaluation mode on its device, with what belongs to it."""

    model: GPT
    config: RunConfig
    tokenizer: Tokenizer
    run: RunDirectory
    checkpoint: Path
    step: int


def open_model(source: str, hardware: Hardware, *, runs_dir: Path = Path("runs")) -> LoadedModel:
    """Loads what ``source`` names; a bare name is also looked for in ``runs_dir``.

    Raises:
        UsageError: it names nothing.
        DataError: it names a run or checkpoint that is damaged or has no weights yet.
    """
    checkpoint = find_checkpoint(source, runs_dir=runs_dir)
    run = find_run(checkpoint.parent.parent)
    verify_folder(checkpoint)
    config = parse_run_config(read_toml(run.config), where=str(run.config))
    model = build_empty(config.model, hardware.device)
    load_model_tensors(checkpoint, model)
    tokenizer = load_tokenizer(run.tokenizer)
    return LoadedModel(model.eval(), config, tokenizer, run, checkpoint, read_state(checkpoint).step)


def find_checkpoint(source: str, *, runs_dir: Path) -> Path:
    """The checkpoint folder that a model source means. Raises UsageError or DataError."""
    place, at, which = source.partition("@")
    path = _existing(Path(place).expanduser(), runs_dir)
    if (path / STATE_FILE).is_file() and not at:
        return path.resolve()
    if not RunDirectory(path).exists():
        raise UsageError(f"model {source}: {path} is neither a run directory nor a checkpoint")
    return _checkpoint_of(RunDirectory(path), which, source)


def _existing(path: Path, runs_dir: Path) -> Path:
    for candidate in (path, runs_dir / path):
        if candidate.is_dir():
            return candidate
    raise UsageError(
        f"model {path}: no such run or checkpoint, here or in {runs_dir}; give a run directory, a run's name, "
        "RUN@latest or RUN@step-N"
    )


def _checkpoint_of(run: RunDirectory, which: str, source: str) -> Path:
    available = checkpoints_in(run.checkpoints)
    if not available:
        raise DataError(f"model {source}: the run has no checkpoint yet")
    best = (run.checkpoints / BEST).resolve()
    if which in ("", BEST) and best in [path.resolve() for path in available]:
        return best
    if which in ("", BEST, "latest"):
        newest, skipped = newest_valid(run.checkpoints)
        if newest is None:
            raise DataError(f"model {source}: no checkpoint is valid ({skipped[0]})")
        return newest
    step = STEP.fullmatch(which)
    found = [path for path in available if step and path.name == f"step-{int(step.group(1)):08}"]
    if not found:
        names = ", ".join(f"step-{int(path.name[5:])}" for path in available)
        raise UsageError(f"model {source}: no checkpoint '{which}'; the run has {names}, and latest and best")
    return found[0]
