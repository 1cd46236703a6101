"""Where a run's weights begin: drawn at random, or taken from another model (``[train] start_from``)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fromscratch.config.model import ModelConfig
from fromscratch.config.train import StartFrom
from fromscratch.errors import UsageError
from fromscratch.formats.checkpoints import STATE_FILE
from fromscratch.formats.model_sources import LoadedModel, open_model
from fromscratch.formats.weights import fill, model_tensors
from fromscratch.machine.hardware import find_hardware
from fromscratch.models.factory import initialise
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.training.step import Stepper


@dataclass(frozen=True)
class Parent:
    """The model that a run goes on from."""

    loaded: LoadedModel
    with_optimizer: bool

    def identity(self) -> dict[str, Any]:
        """What names it, wherever it lies: recorded in the run and part of the run's identity."""
        return {"weights_sha256": self.loaded.fingerprint(), "with_optimizer": self.with_optimizer}

    def to_dict(self) -> dict[str, Any]:
        """The fields of the ``parent`` event."""
        return {"source": self.loaded.source, "step": self.loaded.step, **self.identity()}

    def fill(self, stepper: Stepper) -> None:
        """Copies weights, and the optimiser's state where that was asked for. Raises DataError."""
        if self.with_optimizer:
            stepper.load(self.loaded.checkpoint)
        else:
            fill(stepper.model, model_tensors(self.loaded.model), self.loaded.checkpoint)


def open_parent(start: StartFrom | None, config: ModelConfig, tokenizer: Tokenizer, where: Path) -> Parent | None:
    """The parent that a run file names, looked for beside the file too; None where it names none.

    Raises:
        UsageError: its shape or tokenizer is another, or it has no optimiser state.
        DataError: it is damaged.
    """
    if start is None:
        return None
    beside = where.parent / start.model
    is_beside = beside.with_name(beside.name.partition("@")[0]).exists()
    source = str(beside) if is_beside else start.model
    loaded = open_model(source, find_hardware("cpu"), runs_dir=where.parent / "runs")
    old, new = loaded.config.weight_settings(), config.weight_settings()
    changes = [
        f"model.{key}: {old.get(key)!r} there, {new.get(key)!r} here"
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]
    if changes:
        raise UsageError(f"{where}: train.start_from = {start.model}: another architecture ({'; '.join(changes)})")
    if loaded.tokenizer.fingerprint != tokenizer.fingerprint:
        raise UsageError(
            f"{where}: train.start_from = {start.model}: it knows tokenizer {loaded.tokenizer.name}, but the store was "
            f"made with {tokenizer.name}; prepare the text with the model's tokenizer"
        )
    if start.optimizer and not (loaded.checkpoint / STATE_FILE).is_file():
        raise UsageError(
            f"{where}: train.start_from = {start.model}: it is no checkpoint of a run and has no optimiser state; "
            "leave out optimizer = true"
        )
    return Parent(loaded, start.optimizer)


def begin(stepper: Stepper, config: ModelConfig, *, seed: int, parent: Parent | None) -> None:
    """Gives a model its first weights."""
    if parent is None:
        initialise(stepper.model, config, seed=seed)  # type: ignore[arg-type]
    else:
        parent.fill(stepper)
