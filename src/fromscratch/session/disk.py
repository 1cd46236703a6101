"""Will a run's checkpoints fit on the disk? Asked before the first step, answered exactly."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from fromscratch.errors import UsageError
from fromscratch.files import readable_bytes
from fromscratch.formats.checkpoints import TrainingState
from fromscratch.formats.tensor_files import file_bytes
from fromscratch.models.factory import build_model
from fromscratch.optim.composite import as_composite
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.retention import checkpoints_in
from fromscratch.session.plan import PlannedRun
from fromscratch.training.parallelism import SingleProcess

BYTES_PER_RECORD = 400
BYTES_OF_STATE = 2_000  # state and manifest; windows of recent losses make it a little more


@dataclass(frozen=True)
class DiskPlan:
    """What a run will put on the disk at most, and what is free there."""

    place: Path
    checkpoint_bytes: int
    keep_checkpoints: int
    most_at_once: int
    """Checkpoints on the disk while one is being written: those kept, the best one, the new one."""
    record_bytes: int
    present_bytes: int
    """Of checkpoints that the run has already."""
    free_bytes: int

    @property
    def needed_bytes(self) -> int:
        """What must be free."""
        return max(0, self.most_at_once * self.checkpoint_bytes - self.present_bytes) + self.record_bytes

    def describe(self) -> str:
        """For the user, before the run begins."""
        return (
            f"keeps {self.keep_checkpoints} checkpoint{'s' * (self.keep_checkpoints > 1)} and the best one, "
            f"{readable_bytes(self.checkpoint_bytes)} each, at most {self.most_at_once} at once; "
            f"needs {readable_bytes(self.needed_bytes)}, {readable_bytes(self.free_bytes)} are free"
        )

    def check(self) -> None:
        """Raises UsageError where it cannot fit."""
        if self.needed_bytes > self.free_bytes:
            raise UsageError(
                f"{self.place}: the run needs {self.needed_bytes:,} bytes (up to {self.most_at_once} checkpoints of "
                f"{self.checkpoint_bytes:,} bytes at once, {self.present_bytes:,} bytes are there already), but only "
                f"{self.free_bytes:,} are free; make room, lower train.keep_checkpoints, or give another --runs-dir"
            )


def plan_disk(plan: PlannedRun, path: Path, *, fresh: bool = False) -> DiskPlan:
    """What the run in ``path`` will need.

    Args:
        fresh: whether an older run's checkpoints stay where they are, set aside.
    """
    train = plan.config.train
    scheduled = -(-plan.num_steps // train.checkpoint_every) if train.checkpoint_every else 1
    present = [] if fresh else checkpoints_in(RunDirectory(path).checkpoints)
    return DiskPlan(
        place=path,
        checkpoint_bytes=checkpoint_bytes(plan),
        keep_checkpoints=train.keep_checkpoints,
        most_at_once=min(scheduled, train.keep_checkpoints + 2),
        record_bytes=plan.num_steps * BYTES_PER_RECORD,
        present_bytes=sum(file.stat().st_size for folder in present for file in folder.iterdir()),
        free_bytes=shutil.disk_usage(_existing(path)).free,
    )


def checkpoint_bytes(plan: PlannedRun) -> int:
    """Size of one checkpoint, from an optimiser step on the meta device, which allocates no memory."""
    with torch.device("meta"):
        model = build_model(plan.config.model)
    optimizer = as_composite(plan.config.train.optimizer.build(list(model.named_parameters())))
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    for part in optimizer.optimizers:
        part.step()
    carry = plan.objective.initial_carry(model, plan.config.train.global_batch)
    contents = SingleProcess().gather(model, optimizer, carry, TrainingState())
    assert contents is not None
    return sum(map(file_bytes, contents.files.values())) + BYTES_OF_STATE


def _existing(path: Path) -> Path:
    """The nearest folder above that is there already."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
