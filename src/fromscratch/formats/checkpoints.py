"""Checkpoints: sealed folders that hold everything a resume needs, and nothing that must be trusted.

``model.safetensors``, ``optimizer.safetensors`` and ``state.json`` under a manifest with checksums.
Which of them are whole, and which may go, is the affair of ``runs.retention``.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fromscratch.errors import DataError
from fromscratch.files import FileFacts, point_link, read_json_object, sealed_folder, to_strict_json, verify_folder
from fromscratch.formats.tensor_files import write_tensors
from fromscratch.runs.retention import LATEST, checkpoint_name

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"


@dataclass
class TrainingState:
    """Where a run is: with weights and optimiser state, all that a resume needs.

    No random generator is in it: every random stream is named by seed, step and sequence.
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
    """What a spike is told by; empty where nobody looks for spikes."""
    skipped_batches: int = 0
    """Global batches passed over after spikes: step s trains on batch s + skipped_batches."""

    @property
    def mean_recent_loss(self) -> float | None:
        """Mean training loss since the last scheduled checkpoint."""
        return self.loss_sum / self.loss_count if self.loss_count else None

    def is_improvement(self, loss: float | None) -> bool:
        """Whether a loss beats the best so far; what is unknown or not finite never does."""
        return loss is not None and loss < float("inf") and (self.best_loss is None or loss < self.best_loss)


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds: the run's own tensors or copies of them, and where the run is."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: TrainingState


def save_checkpoint(folder: Path, contents: Contents, **facts: Any) -> Path:
    """Writes ``folder/step-N`` whole or not at all, then points ``latest`` at it."""
    state = contents.state
    destination = folder / checkpoint_name(state.step)
    written: dict[str, FileFacts] = {}
    with sealed_folder(destination, written=written, step=state.step, **facts) as temporary:
        written[MODEL_FILE] = write_tensors(temporary / MODEL_FILE, contents.model)
        written[OPTIMIZER_FILE] = write_tensors(temporary / OPTIMIZER_FILE, contents.optimizer)
        (temporary / STATE_FILE).write_text(to_strict_json(asdict(state), indent=1), "utf-8")
    point_link(folder / LATEST, destination.name)
    return destination


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The weights by name, each stored once however many modules share it."""
    return {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as ``<parameter>/<what>``; tensors only."""
    return {
        f"{name}/{key}": value.detach().contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_model_tensors(checkpoint: Path, model: nn.Module) -> None:
    """Puts a checkpoint's weights into a model.

    Raises:
        DataError: a tensor is missing, unexpected or of another shape; the message names it.
    """
    _copy_into(dict(model.named_parameters()), read_tensors(checkpoint / MODEL_FILE), checkpoint / MODEL_FILE)


def load_training(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingState:
    """Puts weights and optimiser state back and returns where the run was. Raises DataError."""
    verify_folder(checkpoint)
    load_model_tensors(checkpoint, model)
    device = next(model.parameters()).device
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read_tensors(checkpoint / OPTIMIZER_FILE).items():
        parameter_name, _, key = name.rpartition("/")
        by_parameter.setdefault(parameter_name, {})[key] = tensor.to(device)
    for name, parameter in model.named_parameters():
        if name in by_parameter:
            optimizer.state[parameter] = by_parameter.pop(name)
    if by_parameter:
        raise DataError(f"{checkpoint / OPTIMIZER_FILE}: state of unknown parameters {', '.join(sorted(by_parameter))}")
    return read_state(checkpoint)


def read_state(checkpoint: Path) -> TrainingState:
    """The progress that a checkpoint records. Raises DataError when it is malformed."""
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
    """Whether a value can stand where this default stands; null only where the default is."""
    if isinstance(default, dict):
        return isinstance(value, dict)
    if isinstance(default, list):
        return isinstance(value, list) and all(_is_like(0.0, item) for item in value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63
    if isinstance(default, int):
        return is_number and isinstance(value, int) and value >= -1
    return is_number or (default is None and value is None)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises DataError when it is none."""
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not a readable safetensors file ({error})") from error


@torch.no_grad()
def _copy_into(targets: dict[str, nn.Parameter], found: dict[str, Tensor], path: Path) -> None:
    missing, unexpected = sorted(targets.keys() - found.keys()), sorted(found.keys() - targets.keys())
    if missing or unexpected:
        raise DataError(f"{path}: missing tensors {missing or 'none'}, unexpected tensors {unexpected or 'none'}")
    for name, target in targets.items():
        if found[name].shape != target.shape:
            raise DataError(f"{path}: {name} is {list(found[name].shape)}, but the model needs {list(target.shape)}")
        target.copy_(found[name])
