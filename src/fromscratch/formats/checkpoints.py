"""Checkpoints: sealed folders that hold everything a resume needs, as safetensors and JSON.

``model.safetensors``, ``optimizer.safetensors``, ``state.json`` and, for models that carry state from batch
to batch, ``carry.safetensors``, under a manifest with checksums. ``runs.retention`` decides which
checkpoints are kept.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fromscratch.errors import DataError
from fromscratch.files import FileFacts, point_link, read_json_object, sealed_folder, to_strict_json
from fromscratch.formats.tensor_files import write_tensors
from fromscratch.runs.retention import LATEST, checkpoint_name

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
CARRY_FILE = "carry.safetensors"
STATE_FILE = "state.json"


@dataclass
class TrainingState:
    """Where a run is. With weights, optimiser state and carry it is all that a resume needs.

    It holds no random generator, because every random stream is named by seed, step and sequence.
    """

    step: int = 0
    """Optimiser steps done."""
    looked_step: int = -1
    """Last step at which evaluation and samples were complete; a resume does not repeat them."""
    best_step: int | None = None
    best_loss: float | None = None
    """Held-out loss of the best checkpoint, or its mean training loss where nothing is evaluated."""
    nonfinite_in_a_row: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    """Finite training losses since the last scheduled checkpoint."""
    seconds: float = 0.0
    """Time spent in steps, over all sessions."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """The loss scale of fp16."""
    recent_losses: list[float] = field(default_factory=list)
    """The losses that a spike is compared with; empty where ``train.spike`` is off."""
    skipped_batches: int = 0
    """Global batches skipped after spikes: step s trains on batch s + skipped_batches."""

    @property
    def mean_recent_loss(self) -> float | None:
        """Mean training loss since the last scheduled checkpoint."""
        return self.loss_sum / self.loss_count if self.loss_count else None

    def is_improvement(self, loss: float | None) -> bool:
        """Whether a loss is below the best so far. An unknown or non-finite loss never is."""
        return loss is not None and loss < float("inf") and (self.best_loss is None or loss < self.best_loss)


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds: the run's own tensors or copies of them, and where the run is."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: TrainingState
    carry: dict[str, Tensor] = field(default_factory=dict)
    """State that the model carries from batch to batch; a row per sequence of the global batch."""

    @property
    def files(self) -> dict[str, dict[str, Tensor]]:
        """The tensors by the file that holds them."""
        files = {MODEL_FILE: self.model, OPTIMIZER_FILE: self.optimizer}
        return {**files, CARRY_FILE: self.carry} if self.carry else files


def save_checkpoint(folder: Path, contents: Contents, **facts: Any) -> Path:
    """Writes ``folder/step-N`` whole or not at all, then points ``latest`` at it."""
    state = contents.state
    destination = folder / checkpoint_name(state.step)
    written: dict[str, FileFacts] = {}
    with sealed_folder(destination, written=written, step=state.step, **facts) as temporary:
        for name, tensors in contents.files.items():
            written[name] = write_tensors(temporary / name, tensors)
        (temporary / STATE_FILE).write_text(to_strict_json(asdict(state), indent=1), "utf-8")
    point_link(folder / LATEST, destination.name)
    return destination


def read_state(checkpoint: Path) -> TrainingState:
    """Reads where the run was. Raises DataError when the file is malformed."""
    where, values = checkpoint / STATE_FILE, read_json_object(checkpoint / STATE_FILE)
    try:
        state = TrainingState(**values)
    except TypeError as error:
        raise DataError(f"{where}: malformed ({error})") from error
    for name, value in values.items():
        if not _is_like(getattr(TrainingState(), name), value):
            raise DataError(f"{where}: malformed at {name} ({type(value).__name__} {str(value)[:40]!r})")
    return state


def _is_like(default: Any, value: Any) -> bool:
    """Whether a value has the type of a default; null only where the default is null."""
    if isinstance(default, dict):
        return isinstance(value, dict)
    if isinstance(default, list):
        return isinstance(value, list) and all(_is_like(0.0, item) for item in value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63
    if isinstance(default, int):
        return is_number and isinstance(value, int) and value >= -1
    return is_number or (default is None and value is None)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a safetensors file. Raises DataError when it is not one."""
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not a readable safetensors file ({error})") from error
