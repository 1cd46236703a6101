"""Other objectives than next-token prediction: targets that do not count, and state carried between batches."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fromscratch.errors import DataError
from fromscratch.formats.checkpoints import TrainingState, save_checkpoint
from fromscratch.machine.precision import Precision
from fromscratch.models.language_model import LanguageModel
from fromscratch.optim.composite import CompositeOptimizer
from fromscratch.processes.world import ALONE, World
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from fromscratch.runs.states import Event
from fromscratch.session.placement import MachineOptions, place_run
from fromscratch.session.plan import PlannedRun, plan_run
from fromscratch.session.run import run_training
from fromscratch.training.gradients import Gradients, NoClip
from fromscratch.training.next_token import NextToken
from fromscratch.training.nonfinite import Skip
from fromscratch.training.objective import Batches, Carry, Loss, LossSum, MicroBatch, Runtime
from fromscratch.training.parallelism import Parallelism, SingleProcess
from fromscratch.training.step import GlobalOutOfMemoryError, GradientRules, Stepper
from tests.small import write_run_file
from tests.training.test_resume import assert_same_end

VOCABULARY, SEQUENCES, TIME = 11, 6, 5
IGNORED = -100
RATE = 0.1


class TinyModel(nn.Module):
    """Scores each token by its embedding alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.head = nn.Linear(8, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens))


class RecurrentModel(nn.Module):
    """A plain recurrent network: h' = tanh(W [x; h])."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.cell = nn.Linear(16, 8)
        self.head = nn.Linear(8, VOCABULARY)

    def forward(self, tokens: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [B, T] and hidden [B, 8] -> logits [B, T, V] and the new hidden [B, 8]."""
        outputs = []
        for x in self.embedding(tokens).unbind(1):
            hidden = torch.tanh(self.cell(torch.cat([x, hidden], dim=-1)))
            outputs.append(self.head(hidden))
        return torch.stack(outputs, dim=1), hidden


@dataclass
class TinyBatches:
    """Sequences of random tokens, divided as told; sequences may have targets that do not count."""

    micro_batch: int
    masked: bool = False
    world: World = ALONE
    max_steps: int = 1_000

    def targets_in(self, step: int) -> int:
        return SEQUENCES * TIME

    def num_micro_batches(self, step: int) -> int:
        return math.ceil(len(self.world.local_shard(range(SEQUENCES))) / self.micro_batch)

    def smaller(self) -> "Batches | None":
        return TinyBatches(self.micro_batch // 2, self.masked) if self.micro_batch > 1 else None

    def global_batch(self, step: int) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(VOCABULARY, (SEQUENCES, TIME + 1), generator=torch.Generator().manual_seed(step))
        targets = tokens[:, 1:].clone()
        if self.masked:  # sequence i has i targets that count: the first none at all
            for row in range(SEQUENCES):
                targets[row, row:] = IGNORED
        return tokens[:, :-1], targets

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        inputs, targets = self.global_batch(step)
        shard = self.world.local_shard(range(SEQUENCES))
        for begin in range(shard[0], shard[-1] + 1, self.micro_batch):
            rows = slice(begin, min(begin + self.micro_batch, shard[-1] + 1))
            yield MicroBatch(inputs[rows], targets[rows], tuple(range(len(inputs[rows]))))


def masked_loss(model: nn.Module, batch: MicroBatch, _carry: Carry) -> LossSum:
    logits = model(batch.inputs).flatten(0, 1)
    total = F.cross_entropy(logits, batch.targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return LossSum(total, (batch.targets != IGNORED).sum())


def recurrent_loss(model: nn.Module, batch: MicroBatch, carry: Carry) -> LossSum:
    logits, hidden = model(batch.inputs, carry["hidden"])
    total = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")
    return LossSum(total, batch.targets.numel(), {"hidden": hidden})


def stepper(
    model: nn.Module,
    batches: TinyBatches,
    loss: Loss,
    carry: Carry | None = None,
    parallelism: Parallelism | None = None,
) -> Stepper:
    return Stepper(
        model,
        CompositeOptimizer(torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)),
        batches,
        loss=loss,
        rules=GradientRules(NoClip(), Skip(10)),
        precision=Precision("fp32", torch.device("cpu")),
        carry=carry,
        parallelism=parallelism,
    )


def tiny(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return kind()


def recurrent(
    micro_batch: int = SEQUENCES, loss: Loss = recurrent_loss, parallelism: Parallelism | None = None
) -> Stepper:
    parallelism = parallelism or SingleProcess()
    batches = TinyBatches(micro_batch, world=parallelism.world)
    carry = parallelism.local_carry({"hidden": torch.zeros(SEQUENCES, 8)})
    return stepper(tiny(RecurrentModel), batches, loss, carry, parallelism)


def weights(steps: Stepper) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in steps.model.parameters()]


@pytest.mark.parametrize("micro_batch", [1, 2, 4, 6])
def test_the_mean_is_over_the_targets_that_count(micro_batch: int) -> None:
    model, batches = tiny(TinyModel), TinyBatches(micro_batch, masked=True)
    inputs, targets = batches.global_batch(0)
    expected = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    expected.backward()
    norm = Gradients.of(model.parameters()).norm
    model.zero_grad()
    result = stepper(model, batches, masked_loss).take(0, 1.0)
    torch.testing.assert_close(result.loss, expected.detach())
    torch.testing.assert_close(result.grad_norm, norm)
    assert bool(torch.isfinite(result.loss_min)) and result.loss_min <= result.loss <= result.loss_max


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_any_division_takes_the_same_masked_steps(micro_batch: int) -> None:
    whole = stepper(tiny(TinyModel), TinyBatches(SEQUENCES, masked=True), masked_loss)
    divided = stepper(tiny(TinyModel), TinyBatches(micro_batch, masked=True), masked_loss)
    for step in range(4):
        torch.testing.assert_close(whole.take(step, 1.0).loss, divided.take(step, 1.0).loss)
    for one, other in zip(weights(whole), weights(divided), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("micro_batch", [1, 2, 4, 6])
def test_a_carry_goes_from_batch_to_batch(micro_batch: int) -> None:
    """Against a loop of its own over the whole batch, truncated at every step."""
    steps, model = recurrent(micro_batch), tiny(RecurrentModel)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    hidden = torch.zeros(SEQUENCES, 8)
    for step in range(4):
        inputs, targets = steps.batches.global_batch(step)  # type: ignore[attr-defined]
        logits, new = model(inputs, hidden)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        hidden = new.detach()
        torch.testing.assert_close(steps.take(step, 1.0).loss, loss.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(steps.carry["hidden"], hidden, atol=1e-5, rtol=1e-5)
    assert not steps.carry["hidden"].requires_grad and bool(hidden.any())


def test_a_probe_leaves_the_carry_alone() -> None:
    steps = recurrent(2)
    steps.take(0, 1.0)
    before = steps.carry["hidden"].clone()
    assert steps.probe_memory(1) and torch.equal(steps.carry["hidden"], before)


def test_a_spike_and_a_bad_step_keep_the_old_carry() -> None:
    steps = recurrent(4)
    steps.take(0, 1.0)
    before = steps.carry["hidden"].clone()
    assert bool(steps.take(1, 1.0, is_spike=lambda _loss: True).spike)
    assert torch.equal(steps.carry["hidden"], before)
    handle = steps.model.head.weight.register_hook(lambda grad: grad * math.inf)
    steps.take(1, 1.0)
    assert torch.equal(steps.carry["hidden"], before)
    handle.remove()
    steps.take(1, 1.0)
    assert not torch.equal(steps.carry["hidden"], before)


def test_a_step_without_memory_keeps_the_old_carry_and_can_be_taken_again() -> None:
    failures = [True]

    def short_of_memory(model: nn.Module, batch: MicroBatch, carry: Carry) -> LossSum:
        if len(batch.inputs) == 2 and failures:
            failures.pop()
            raise torch.OutOfMemoryError("made up")
        return recurrent_loss(model, batch, carry)

    steps, untouched = recurrent(4, short_of_memory), recurrent(2)
    with pytest.raises(GlobalOutOfMemoryError):
        steps.take(0, 1.0)
    assert not steps.carry["hidden"].any()
    steps.forget_gradients()
    smaller = steps.batches.smaller()
    assert smaller is not None
    steps.batches = smaller
    for step in range(2):
        steps.take(step, 1.0), untouched.take(step, 1.0)
    assert torch.equal(steps.carry["hidden"], untouched.carry["hidden"])


def saved(steps: Stepper, folder: Path, step: int) -> Path:
    contents = steps.parallelism.gather(steps.model, steps.optimizer, steps.carry, TrainingState(step=step))
    assert contents is not None
    return save_checkpoint(folder, contents)


def test_f10_a_carry_is_resumed_to_the_bit(tmp_path: Path) -> None:
    untouched, stopped, resumed = recurrent(2), recurrent(2), recurrent(2)
    for step in range(6):
        untouched.take(step, 1.0)
    for step in range(3):
        stopped.take(step, 1.0)
    state = resumed.load(saved(stopped, tmp_path, 3))
    for step in range(state.step, 6):
        resumed.take(step, 1.0)
    assert torch.equal(resumed.carry["hidden"], untouched.carry["hidden"])
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(untouched), strict=True))


def test_a_checkpoint_without_the_models_carry_is_refused(tmp_path: Path) -> None:
    stateless = stepper(tiny(RecurrentModel), TinyBatches(2), recurrent_loss)
    with pytest.raises(DataError, match="carries nothing between batches"):
        recurrent().load(saved(stateless, tmp_path, 1))


def test_a_carry_is_one_more_file_only_where_there_is_one(tmp_path: Path) -> None:
    files: list[set[str]] = []
    for number, steps in enumerate((recurrent(), stepper(tiny(TinyModel), TinyBatches(6), masked_loss)), 1):
        files.append({path.name for path in saved(steps, tmp_path, number).iterdir()})
    plain: Any = {"manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"}
    assert files == [plain | {"carry.safetensors"}, plain]


class EveryOtherToken(NextToken):
    """Next-token prediction where only every other target counts, in training and in evaluation."""

    @property
    def identity(self) -> dict[str, Any]:
        return {**super().identity, "data.epochs": "every other token"}

    def loss(self, model: LanguageModel, batch: MicroBatch, carry: Carry) -> LossSum:
        counts = torch.arange(batch.targets.shape[1]) % 2 == 0
        losses = model.losses(batch.inputs, batch.targets)
        return LossSum((losses * counts).sum(), (counts.expand_as(losses)).sum())

    def evaluate(self, model: LanguageModel, runtime: Runtime, stop: Callable[[], bool]) -> float | None:
        return 1.0

    def sample(self, model: LanguageModel) -> list[str]:
        return ["a text of its own"]


def run_objective(plan: PlannedRun, name: str, **options: Any) -> RunDirectory:
    path = plan.folder / "runs" / name
    placement = place_run(plan, RunDirectory(path), MachineOptions(device="cpu", micro_batch=options.pop("size", 8)))
    run_training(plan, path, placement, observers=[], **options)
    return RunDirectory(path)


def test_f10_another_objective_goes_through_the_same_loop(tmp_path: Path) -> None:
    planned = plan_run(write_run_file(tmp_path, train={"checkpoint_every": 5, "evaluate_every": 5, "sample_every": 20}))
    assert isinstance(planned.objective, NextToken)
    plan = replace(planned, objective=EveryOtherToken(**vars(planned.objective)))
    assert plan.identity != planned.identity
    untouched = run_objective(plan, "untouched")
    run_objective(plan, "stopped", stop_after=7)
    assert_same_end(untouched, run_objective(plan, "stopped"))
    divided = run_objective(plan, "divided", size=2)
    losses = [[record["loss"] for record in read_records(run.metrics)] for run in (untouched, divided)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    events = list(read_records(untouched.events))
    assert {event["loss"] for event in events if event["event"] == Event.EVALUATION} == {1.0}
    assert [event["text"] for event in events if event["event"] == Event.SAMPLE] == ["a text of its own"] * 2
    with pytest.raises(DataError, match="belongs to another run"):
        run_objective(planned, "stopped")
