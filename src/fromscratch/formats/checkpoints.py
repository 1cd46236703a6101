"""Checkpoints: folders with checksums that hold everything a resume needs, as safetensors and JSON.

The files are ``model.safetensors``, ``optimizer.safetensors``, ``state.json`` and a manifest with checksums.
Models that carry state from batch to batch add ``carry.safetensors``, averages of the weights ``ema.safetensors`` and
``tail.safetensors``. ``runs.retention`` decides which
checkpoints are kept.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fromscratch.errors import DataError
from fromscratch.files import MANIFEST, FileEntry, point_link, read_json_object, sealed_folder, to_strict_json
from fromscratch.formats.tensor_files import write_tensors
from fromscratch.models.dropout import MASK_VERSION
from fromscratch.runs.retention import LATEST, checkpoint_name

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
CARRY_FILE = "carry.safetensors"
STATE_FILE = "state.json"
RAW = "raw"
"""The name of the weights that are trained, beside those of their averages."""
AVERAGES = ("ema", "tail")
"""The names of averages of the weights."""
MASKS = "mask_version"
"""The version of the dropout masks that a checkpoint was trained with, in its manifest; earlier ones name none."""


@dataclass
class TrainingState:
    """Progress of a run. A resume needs it, the weights, the optimiser state and the carry, and nothing else.

    It holds no random generator state, because each random stream is derived from seed, step and sequence.
    """

    step: int = 0
    """Number of optimiser steps done."""
    looked_step: int = -1
    """Last step at which evaluation and samples were complete; a resume does not repeat them."""
    best_step: int | None = None
    best_loss: float | None = None
    """Validation loss of the best checkpoint; its mean training loss if the run has no evaluation."""
    nonfinite_in_a_row: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    """Number of finite training losses since the last scheduled checkpoint; ``loss_sum`` is their sum."""
    seconds: float = 0.0
    """Time spent in training steps, over all sessions."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """The loss scale of fp16."""
    recent_losses: list[float] = field(default_factory=list)
    """Recent losses, the reference for spike detection; empty if ``train.spike`` is off."""
    skipped_batches: int = 0
    """Number of global batches skipped after spikes. Step s trains on batch s + skipped_batches."""

    averaged: dict[str, int] = field(default_factory=dict)
    """Number of steps whose weights each average holds, by its name; averages that have not begun are left out."""

    @property
    def mean_recent_loss(self) -> float | None:
        """Returns the mean training loss since the last scheduled checkpoint; None without losses."""
        return self.loss_sum / self.loss_count if self.loss_count else None

    def is_improvement(self, loss: float | None) -> bool:
        """Whether a loss is lower than the best loss. False for an unknown or non-finite loss."""
        return loss is not None and loss < float("inf") and (self.best_loss is None or loss < self.best_loss)


@dataclass(frozen=True)
class Contents:
    """Contents of a checkpoint. The tensors may share memory with the run."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: TrainingState
    carry: dict[str, Tensor] = field(default_factory=dict)
    """State that the model carries from batch to batch; one row per sequence of the global batch."""
    averages: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """The trained weights as each average has them, by the average's name."""

    @property
    def files(self) -> dict[str, dict[str, Tensor]]:
        """Returns the tensors of each file, by file name."""
        files = {MODEL_FILE: self.model, OPTIMIZER_FILE: self.optimizer}
        files |= {average_file(name): tensors for name, tensors in self.averages.items()}
        return {**files, CARRY_FILE: self.carry} if self.carry else files


def average_file(name: str) -> str:
    """The file of a checkpoint that holds an average of the weights."""
    return f"{name}.safetensors"


def save_checkpoint(folder: Path, contents: Contents, **metadata: Any) -> Path:
    """Writes ``folder/step-N`` atomically, with ``metadata`` in its manifest; then points ``latest`` at it."""
    state = contents.state
    destination = folder / checkpoint_name(state.step)
    written: dict[str, FileEntry] = {}
    metadata = {"step": state.step, MASKS: MASK_VERSION, **metadata}
    with sealed_folder(destination, written=written, **metadata) as temporary:
        for name, tensors in contents.files.items():
            written[name] = write_tensors(temporary / name, tensors)
        (temporary / STATE_FILE).write_text(to_strict_json(asdict(state), indent=1), "utf-8")
    point_link(folder / LATEST, destination.name)
    return destination


def mask_version(checkpoint: Path) -> int:
    """Returns the version of the dropout masks of a verified checkpoint."""
    return int(read_json_object(checkpoint / MANIFEST).get(MASKS, 1))


def read_state(checkpoint: Path) -> TrainingState:
    """Reads the training state of a checkpoint. Raises DataError when the file is malformed."""
    path, values = checkpoint / STATE_FILE, read_json_object(checkpoint / STATE_FILE)
    try:
        state = TrainingState(**values)
    except TypeError as error:
        raise DataError(f"{path}: malformed ({error})") from error
    for name, value in values.items():
        if not _has_type_of(getattr(TrainingState(), name), value):
            raise DataError(f"{path}: malformed at {name} ({type(value).__name__} {str(value)[:40]!r})")
    if not all(type(count) is int for count in state.averaged.values()):
        raise DataError(f"{path}: malformed at averaged ({str(state.averaged)[:40]!r}); it counts steps by average")
    return state


def _has_type_of(default: Any, value: Any) -> bool:
    """Whether a value has the type of a default. Null is valid only if the default is null."""
    if isinstance(default, dict):
        return isinstance(value, dict)
    if isinstance(default, list):
        return isinstance(value, list) and all(_has_type_of(0.0, item) for item in value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63
    if isinstance(default, int):
        return is_number and isinstance(value, int) and value >= -1
    return is_number or (default is None and value is None)
