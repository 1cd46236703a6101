"""Checks before the first step whether a run's checkpoints fit on the disk."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fromscratch.config.run import RunConfig
from fromscratch.config.train import TrainConfig
from fromscratch.errors import UsageError
from fromscratch.files import readable_bytes
from fromscratch.finetuning.adaptation import trained_parameters
from fromscratch.formats.checkpoints import TrainingState
from fromscratch.formats.tensor_files import file_bytes
from fromscratch.models.factory import build_model
from fromscratch.models.language_model import LanguageModel
from fromscratch.optim.composite import as_composite
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.overview import size_of
from fromscratch.runs.retention import checkpoints_in
from fromscratch.session.plan import PlannedRun
from fromscratch.training.parallelism import SingleProcess

BYTES_PER_RECORD = 400
BYTES_OF_STATE = 2_000  # state and manifest, without the windows of recent losses


@dataclass(frozen=True)
class DiskPlan:
    """The maximum disk space that a run uses, and the free space."""

    path: Path
    checkpoint_bytes: int
    keep_checkpoints: int
    max_at_once: int
    """Checkpoints on the disk during a save: those kept, the best one, the new one."""
    record_bytes: int
    present_bytes: int
    """Size of the run's existing checkpoints."""
    free_bytes: int

    @property
    def needed_bytes(self) -> int:
        """The free space that the run needs."""
        return max(0, self.max_at_once * self.checkpoint_bytes - self.present_bytes) + self.record_bytes

    def describe(self) -> str:
        """Returns the plan as one line of text."""
        return (
            f"keeps {self.keep_checkpoints} checkpoint{'s' * (self.keep_checkpoints > 1)} and the best one, "
            f"{readable_bytes(self.checkpoint_bytes)} each, at most {self.max_at_once} at once; "
            f"needs {readable_bytes(self.needed_bytes)}, {readable_bytes(self.free_bytes)} are free"
        )

    def check(self) -> None:
        """Raises UsageError if the free space is too small."""
        if self.needed_bytes > self.free_bytes:
            raise UsageError(
                f"{self.path}: the run needs {self.needed_bytes:,} bytes (up to {self.max_at_once} checkpoints of "
                f"{self.checkpoint_bytes:,} bytes at once, {self.present_bytes:,} bytes exist already), but only "
                f"{self.free_bytes:,} are free; free some space, lower train.keep_checkpoints, or change --runs-dir"
            )


def plan_disk(plan: PlannedRun, path: Path, *, fresh: bool = False) -> DiskPlan:
    """Computes the disk space that the run in ``path`` needs.

    Args:
        fresh: whether an older run is renamed, so that its checkpoints stay on the disk.
    """
    train = plan.config.train
    present = [] if fresh else checkpoints_in(RunDirectory(path).checkpoints)
    return DiskPlan(
        path=path,
        checkpoint_bytes=checkpoint_bytes(plan.config, plan.objective.initial_carry, plan.adapt),
        keep_checkpoints=train.keep_checkpoints,
        max_at_once=checkpoints_at_once(train, plan.num_steps),
        record_bytes=plan.num_steps * BYTES_PER_RECORD,
        present_bytes=sum(map(size_of, present)),
        free_bytes=shutil.disk_usage(_existing(path)).free,
    )


def checkpoints_at_once(train: TrainConfig, num_steps: int) -> int:
    """Returns the maximum number of checkpoints on the disk during a save: those kept, the best one, the new one."""
    scheduled = -(-num_steps // train.checkpoint_every) if train.checkpoint_every else 1
    return min(scheduled, train.keep_checkpoints + 2)


def checkpoint_bytes(
    config: RunConfig,
    initial_carry: Callable[[LanguageModel, int], dict[str, Tensor]],
    adapt: Callable[[LanguageModel], None] | None = None,
) -> int:
    """Computes the size of one checkpoint, by an optimiser step on the meta device, which allocates no memory.

    Args:
        config: with a known vocabulary size.
        initial_carry: what a model carries between batches, for a number of sequences.
        adapt: changes the model for fine-tuning.
    """
    with torch.device("meta"):
        model = build_model(config.train.last_model(config.model))
    if adapt:
        adapt(model)
    trained = trained_parameters(model)
    optimizer = as_composite(config.train.optimizer.build(trained))
    for _, parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    for part in optimizer.optimizers:
        part.step()
    carry = initial_carry(model, config.train.global_batch)
    contents = SingleProcess().gather(model, optimizer, carry, TrainingState())
    assert contents is not None
    of_averages = file_bytes({name: parameter.detach() for name, parameter in trained})
    num_averages = len(config.train.average_rules())
    return sum(map(file_bytes, contents.files.values())) + num_averages * of_averages + BYTES_OF_STATE


def _existing(path: Path) -> Path:
    """Returns the path itself or its nearest parent that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
