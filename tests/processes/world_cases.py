"""What goes wrong in one process of two, one case after another, in one start of torchrun.

Writes the findings of each process as JSON into ``rank-N.json`` beside the run file.
"""

import gc
import hashlib
import json
import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fromscratch.errors import DivergedError, FromScratchError
from fromscratch.formats.checkpoints import TrainingState, save_checkpoint
from fromscratch.planning.sharding import Sharding
from fromscratch.processes.world import World, joined_world
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from fromscratch.session.placement import MachineOptions, Placement, place_run
from fromscratch.session.plan import plan_run
from fromscratch.session.setup import open_run_directory, prepare_training, record_session
from fromscratch.training.journal import Journal
from fromscratch.training.loop import Training, take_step, train
from fromscratch.training.memory_retry import MemoryRetry
from fromscratch.training.next_token import TokenBatches, next_token_loss
from fromscratch.training.objective import Carry, Loss, LossSum, MicroBatch
from fromscratch.training.parallelism import choose_parallelism
from fromscratch.training.recorder import StepRecorder
from fromscratch.training.step import Stepper
from tests.training.test_objective import recurrent as recurrent_steps

SICK_RANK = 1
BAD_STEP = 33
POLICIES = {
    "skip": {"kind": "skip"},
    "raise": {"kind": "raise"},
    "random-step": {"kind": "random-step", "norm": 0.25},
    "apply": {"kind": "apply"},
}


class Case:
    """One training of the world, from the run file with some keys changed."""

    def __init__(self, file: Path, world: World, name: str, *overrides: str, **machine: Any) -> None:
        self.world, self.machine = world, MachineOptions(device="cpu", **{"shard": Sharding.OFF, **machine})
        self.path = file.resolve().parent / "runs" / name
        plan = plan_run(file, list(overrides))
        self.plan = plan
        with world.main_first():
            if world.is_main:
                open_run_directory(plan, self.path, fresh=False)
        placement = self.placement()
        self.training = prepare_training(plan, RunDirectory(self.path), placement, world, observers=[])
        if world.is_main:
            record_session(plan, RunDirectory(self.path), placement, step=0)
        world.barrier()

    def placement(self) -> Placement:
        """What a start would choose now."""
        return place_run(self.plan, RunDirectory(self.path), self.machine)

    @property
    def stepper(self) -> Stepper:
        return self.training.stepper

    def weights(self) -> str:
        """A digest of all weights."""
        return digest([*self.stepper.parameters])

    def moments(self) -> str:
        """A digest of the optimiser's state."""
        states = [self.stepper.optimizer.state[p] for p in self.training.model.parameters()]
        return digest([tensor for state in states for tensor in state.values()])

    def records(self) -> list[dict[str, Any]]:
        return list(read_records(self.training.journal.run.metrics))

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in read_records(self.training.journal.run.events) if e["event"] == kind]

    def outcome(self, *, stop_after: int | None = None) -> dict[str, Any]:
        """Trains to the end, or to a step."""
        train(self.training, stop_after=stop_after)
        self.world.barrier()
        found: dict[str, Any] = {"weights": self.weights(), "step": self.training.state.step, "path": str(self.path)}
        if self.world.is_main:
            found |= {"losses": [r["loss"] for r in self.records()], "outcomes": [r["outcome"] for r in self.records()]}
        return found


def digest(tensors: list[Tensor]) -> str:
    """Of the bits of tensors."""
    content = hashlib.sha256()
    for tensor in tensors:
        content.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


@contextmanager
def poisoned_gradient(case: Case, value: float) -> Iterator[None]:
    """In the sick process, one row of one gradient is ``value``."""
    if case.world.rank != SICK_RANK:
        yield
        return
    weight = case.training.model.blocks[0].feedforward.up.weight
    handle = weight.register_hook(lambda grad: grad.index_fill(0, torch.tensor([1]), value))
    yield
    handle.remove()


def policies(file: Path, world: World) -> dict[str, Any]:
    """F19 and F20: an infinity in one process, each policy; then another step, with digests all along."""
    found = {}
    for name, policy in POLICIES.items():
        table = json.dumps(policy).replace(":", " =")
        case = Case(file, world, f"policy-{name}", f"train.nonfinite = {table}".replace(" = ", "=", 1))
        case.stepper.take(0, 1.0)
        before = case.weights(), case.moments()
        with poisoned_gradient(case, math.inf):
            bad = case.stepper.take(1, 1.0)
        after = case.weights(), case.moments()
        case.stepper.take(2, 1.0)
        finite = all(bool(torch.isfinite(p).all()) for p in case.training.model.parameters())
        found[name] = {"before": before, "after": after, "last": case.weights(), "outcome": int(bad.outcome)}
        found[name]["finite"] = finite
    return found


def raises(file: Path, world: World) -> str:
    """The policy ``raise`` in the loop: what every process ends with."""
    case = Case(file, world, "raises", "train.nonfinite=raise")
    with poisoned_gradient(case, math.inf):
        try:
            train(case.training)
        except DivergedError as error:
            return str(error)
    return "nothing"


def nan_loss_of(model: Any, batch: MicroBatch, carry: Carry) -> LossSum:
    result = next_token_loss(model, batch, carry)
    return result._replace(total=result.total * math.nan)


def nan_loss(file: Path, world: World) -> dict[str, Any]:
    """F19: the loss of the sick process is NaN at one step of a whole run."""
    case = Case(file, world, "nan-loss")
    seen: dict[int, str] = {}
    original = case.stepper.take

    def take(step: int, *arguments: Any, **options: Any) -> Any:
        seen[step] = case.weights()
        bad = step == 7 and world.rank == SICK_RANK
        case.stepper.loss_module.loss = nan_loss_of if bad else next_token_loss
        return original(step, *arguments, **options)

    case.stepper.take = take  # type: ignore[method-assign]
    found = case.outcome()
    return {**found, "before": seen[7], "after": seen[8], "events": len(case.events("nonfinite"))}


def scale(file: Path, world: World) -> dict[str, Any]:
    """F20: an infinite gradient in one process, with fp16's loss scale."""
    case = Case(file, world, "scale", "train.precision=fp16")
    case.stepper.take(0, 1.0)
    before = case.weights(), case.moments(), float(case.stepper.precision.loss_scale())
    with poisoned_gradient(case, math.inf):
        bad = case.stepper.take(1, 1.0)
    after = case.weights(), case.moments(), float(case.stepper.precision.loss_scale())
    return {"before": before, "after": after, "outcome": int(bad.outcome)}


def spikes(file: Path, world: World) -> dict[str, Any]:
    """F22: a batch of wrong targets, and each policy."""
    original = TokenBatches._load

    def load(self: TokenBatches, step: int, indices: Any) -> MicroBatch:
        batch = original(self, step, indices)
        if step != BAD_STEP:
            return batch
        return MicroBatch(batch.inputs, torch.full_like(batch.targets, 255), batch.sequence_keys)

    found = {}
    TokenBatches._load = load  # type: ignore[method-assign]
    for kind in ("warn", "skip", "rollback"):
        spike = f'train.spike={{kind = "{kind}", window = 16, deviations = 4.0}}'
        case = Case(file, world, f"spike-{kind}", spike, "data.tokens=5120", "train.checkpoint_every=4")
        found[kind] = {**case.outcome(), "rollbacks": case.events("rollback")}
    TokenBatches._load = original  # type: ignore[method-assign]
    return found


def lacking(state: TrainingState, first_step: int) -> Loss:
    """A loss that from a step on has no memory for more than one sequence."""

    def loss(model: Any, batch: MicroBatch, carry: Carry) -> LossSum:
        if len(batch.inputs) > 1 and state.step >= first_step:
            raise torch.OutOfMemoryError("made up")
        return next_token_loss(model, batch, carry)

    return loss


def memory(file: Path, world: World) -> dict[str, Any]:
    """The sick process has memory for one sequence at a time only: from the beginning, or from a step on."""
    found = {}
    for name, first_step in (("rehearsal", 0), ("mid-step", 7)):
        case = Case(file, world, f"memory-{name}")
        if world.rank == SICK_RANK:
            case.stepper.loss_module.loss = lacking(case.training.state, first_step)
        found[name] = {**case.outcome(), "pieces": case.stepper.batches.num_micro_batches(0)}
        found[name]["next"] = case.placement().micro_batch
    case = Case(file, world, "memory-backward")
    no_memory = torch.OutOfMemoryError("made up")

    def backward(objective: Tensor, step: int) -> None:
        raise no_memory

    case.stepper._backward = backward  # type: ignore[method-assign]
    try:
        memory = MemoryRetry(case.stepper, case.training.journal)
        take_step(case.training, recorder_of(case.training), memory)
    except FromScratchError as error:
        found["backward"] = {"error": str(error), "next": case.placement().micro_batch}
    return found


def carry(file: Path, world: World) -> dict[str, Any]:
    """A recurrent model takes steps; its carry is gathered, and a checkpoint of one process is continued by all."""
    folder = file.resolve().parent / "carry"
    steps = recurrent_steps(2, parallelism=choose_parallelism(world))
    for step in range(3):
        steps.take(step, 1.0)
    contents = steps.parallelism.gather(steps.model, steps.optimizer, steps.carry, TrainingState(step=3))
    found: dict[str, Any] = {"local": steps.carry["hidden"].tolist()}
    if contents is not None:
        save_checkpoint(folder, contents)
        found["whole"] = contents.carry["hidden"].tolist()
    world.barrier()
    again = recurrent_steps(2, parallelism=choose_parallelism(world))
    again.load(folder / "step-00000003")
    return {**found, "loaded": again.carry["hidden"].tolist(), "loss": float(again.take(3, 1.0).loss)}


def recorder_of(training: Training) -> StepRecorder:
    """One that tells nobody."""
    quiet = Journal(training.journal.run, [], writes=False)
    return StepRecorder(training.state, training.stepper.rules.policy, training.spikes, quiet, tokens_before=int)


def main(file: Path) -> None:
    """Runs every case in the world that torchrun started."""
    with joined_world(torch.device("cpu")) as world:
        group = weakref.ref(dist.group.WORLD)
        found: dict[str, Any] = {"undisturbed": Case(file, world, "undisturbed").outcome()}
        for case in (policies, raises, nan_loss, scale, spikes, memory, carry):
            found[case.__name__] = case(file, world)
    gc.collect()
    found["group_is_kept"] = group() is not None
    (file.parent / f"rank-{world.rank}.json").write_text(json.dumps(found))
