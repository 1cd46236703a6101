"""Sets a run's first weights: random, or those of another model (``[train] start_from``)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fromscratch.config.model import ModelConfig
from fromscratch.config.train import StartFrom
from fromscratch.errors import UsageError
from fromscratch.finetuning.adaptation import set_adapted_weights
from fromscratch.formats.checkpoints import RAW, STATE_FILE
from fromscratch.formats.model_sources import LoadedModel, open_model, split_source
from fromscratch.formats.weights import model_tensors
from fromscratch.machine.hardware import find_hardware
from fromscratch.models.factory import build_empty, initialise
from fromscratch.models.language_model import LanguageModel
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.training.step import Stepper


@dataclass(frozen=True)
class Parent:
    """The model whose weights a run continues from."""

    loaded: LoadedModel
    with_optimizer: bool

    def identity(self) -> dict[str, Any]:
        """Returns the parent's part of the run's identity. It does not depend on the parent's path."""
        return {"weights_sha256": self.loaded.fingerprint(), "with_optimizer": self.with_optimizer}

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields of the ``parent`` event."""
        return {"source": self.loaded.source, "step": self.loaded.step, **self.identity()}

    def fill(self, stepper: Stepper) -> None:
        """Copies the weights, and the optimiser state if ``with_optimizer``. Raises DataError."""
        if self.with_optimizer:
            stepper.load(self.loaded.checkpoint)
        else:
            stepper.parallelism.fill(stepper.model, model_tensors(self.loaded.model), self.loaded.checkpoint)


def open_parent(
    start: StartFrom | None, config: ModelConfig, tokenizer: Tokenizer, folder: Path, run_file: Path
) -> Parent | None:
    """Opens the parent that a run file names; None if it names none.

    Args:
        folder: where a relative path may start; a run may also be in its ``runs``.

    Raises:
        UsageError: the parent's architecture or tokenizer differs, or it has no optimiser state.
        DataError: the parent is damaged.
    """
    if start is None:
        return None
    parent = open_base(start, folder, str(run_file))
    loaded, where = parent.loaded, f"{run_file}: train.start_from = {start.model}"
    old, new = loaded.config.weight_settings(), config.weight_settings()
    changes = [
        f"model.{key}: {old.get(key)!r} in the parent, {new.get(key)!r} here"
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]
    if changes:
        raise UsageError(f"{where}: its architecture differs ({'; '.join(changes)})")
    if loaded.tokenizer.fingerprint != tokenizer.fingerprint:
        raise UsageError(
            f"{where}: its tokenizer is {loaded.tokenizer.name}, but the store's is {tokenizer.name}; prepare the "
            "text with the model's tokenizer"
        )
    return parent


def open_base(start: StartFrom, folder: Path, run_file: str, *, may_encode: bool = False) -> Parent:
    """Opens the model of ``start_from``, whatever its architecture.

    Args:
        may_encode: whether it may be an encoder, which can only be made a classifier.

    Raises:
        UsageError: there is no such model, or it has no optimiser state although that is wanted.
        DataError: it is damaged.
    """
    local = folder / start.model
    is_local = local.exists() or Path(split_source(str(local))[0]).exists()
    source, cpu = str(local) if is_local else start.model, find_hardware("cpu")
    loaded = open_model(source, cpu, runs_dir=folder / "runs", may_encode=may_encode)
    if start.optimizer and loaded.weights != RAW:
        raise UsageError(
            f"{run_file}: train.start_from = {start.model}: the optimiser's state belongs to the raw weights, "
            f"not to their average '{loaded.weights}'; name @raw, or remove optimizer = true"
        )
    if start.optimizer and not (loaded.checkpoint / STATE_FILE).is_file():
        raise UsageError(
            f"{run_file}: train.start_from = {start.model}: it has no optimiser state, because it is not a checkpoint "
            "of a run; remove optimizer = true"
        )
    return Parent(loaded, start.optimizer)


def set_first_weights(
    stepper: Stepper, config: ModelConfig, *, seed: int, parent: Parent | None, is_adapted: bool = False
) -> None:
    """Sets a model's first weights: random, or the parent's, with those of the additions to an adapted model."""
    if parent is not None and is_adapted:
        base, model = model_tensors(parent.loaded.model), stepper.model
        assert isinstance(model, LanguageModel)
        set_adapted_weights(model, base, seed=seed, where=parent.loaded.checkpoint)
    elif parent is None and stepper.parallelism.computes_alone:
        initialise(stepper.model, config, seed=seed)  # type: ignore[arg-type]
    elif parent is None:  # drawn whole, of which each process keeps its part
        whole = build_empty(config, "cpu")
        initialise(whole, config, seed=seed)
        stepper.parallelism.fill(stepper.model, model_tensors(whole), Path("the first weights"))
    else:
        parent.fill(stepper)
