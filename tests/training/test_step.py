"""One step: accumulation, careful updates, precisions."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from fromscratch.config.model import GPTConfig
from fromscratch.config.train import AdamW
from fromscratch.machine.precision import Precision
from fromscratch.models.factory import build_empty, initialise
from fromscratch.models.gpt import GPT
from fromscratch.optim.composite import CompositeOptimizer, as_composite
from fromscratch.training.gradients import ClipByNorm, Outcome
from fromscratch.training.next_token import next_token_loss
from fromscratch.training.nonfinite import NonfinitePolicy, Skip
from fromscratch.training.objective import MicroBatch
from fromscratch.training.parallelism import Parallelism
from fromscratch.training.step import GradientRules, Stepper

CPU = torch.device("cpu")
CONFIG = GPTConfig.model_validate(
    {
        "vocab_size": 31,
        "context_length": 8,
        "num_layers": 2,
        "num_heads": 2,
        "embedding_dim": 16,
        "dropout": 0.2,
        "attention": "sdpa",
    }
)


@dataclass
class RandomBatches:
    """Eight sequences a step, divided as told."""

    micro_batch: int
    max_steps: int = 1_000

    def targets_in(self, step: int) -> int:
        return 64

    def num_micro_batches(self, step: int) -> int:
        return -(-8 // self.micro_batch)

    def smaller(self) -> None:
        return None

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        tokens = torch.randint(0, 31, (8, 9), generator=torch.Generator().manual_seed(step))
        for begin in range(0, 8, self.micro_batch):
            rows = slice(begin, begin + self.micro_batch)
            keys = tuple(range(100 * step + begin, 100 * step + begin + len(tokens[rows])))
            yield MicroBatch(tokens[rows, :-1], tokens[rows, 1:], keys)


def model() -> GPT:
    built = build_empty(CONFIG, "cpu")
    initialise(built, CONFIG, seed=5)
    return built


def stepper(
    network: nn.Module,
    micro_batch: int,
    precision: str = "fp32",
    policy: NonfinitePolicy | None = None,
    parallelism: Parallelism | None = None,
) -> Stepper:
    return Stepper(
        network,
        as_composite(AdamW(learning_rate=0.01).build(list(network.named_parameters()))),
        RandomBatches(micro_batch),
        loss=next_token_loss,
        rules=GradientRules(ClipByNorm(1.0), policy or Skip(10), seed=1),
        precision=Precision(precision, CPU),
        parallelism=parallelism,
    )


def snapshot(network: nn.Module, optimizer: CompositeOptimizer) -> list[Tensor]:
    state = [value for p in network.parameters() for value in optimizer.state[p].values()]
    return [tensor.detach().clone() for tensor in [*network.parameters(), *state]]


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 4])
def test_any_division_of_the_batch_gives_the_same_steps_with_dropout_on(micro_batch: int) -> None:
    whole, divided = stepper(model(), 8), stepper(model(), micro_batch)
    for step in range(5):
        one, other = whole.take(step, 1.0), divided.take(step, 1.0)
        torch.testing.assert_close(other.loss, one.loss, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(other.grad_norm, one.grad_norm, atol=1e-4, rtol=1e-4)
    assert one.loss_min == one.loss_max and other.loss_min < other.loss_max


def test_loss_is_the_mean_and_the_band_holds_it() -> None:
    result = stepper(model(), 2).take(0, 1.0)
    assert result.loss_min <= result.loss <= result.loss_max


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_f20_a_step_with_bad_gradients_moves_nothing(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    network = model()
    steps = stepper(network, 4)
    steps.take(0, 1.0)
    before = snapshot(network, steps.optimizer)
    network.blocks[1].feedforward.up.weight.register_hook(lambda grad: grad.index_fill(0, torch.tensor([2]), bad))
    result = steps.take(1, 1.0)
    assert bool(result.outcome == Outcome.NONFINITE)
    for old, new in zip(before, snapshot(network, steps.optimizer), strict=True):
        assert torch.equal(old, new)


def test_an_optimiser_without_the_flag_is_asked_first() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = CompositeOptimizer(torch.optim.SGD([parameter], lr=1.0))
    parameter.grad = torch.ones(3)
    optimizer.step_unless(torch.tensor(True))
    assert torch.equal(parameter.detach(), torch.ones(3))
    optimizer.step_unless(torch.tensor(False))
    assert torch.equal(parameter.detach(), torch.zeros(3))


@pytest.mark.parametrize(("precision", "tolerance"), [("tf32", 1e-3), ("bf16", 2e-2), ("fp16", 1e-2)])
def test_precisions_agree_with_fp32_as_far_as_they_can(precision: str, tolerance: float) -> None:
    exact, rounded = stepper(model(), 4), stepper(model(), 4, precision)
    for step in range(3):
        a, b = exact.take(step, 1.0), rounded.take(step, 1.0)
        assert b.loss.item() == pytest.approx(a.loss.item(), abs=tolerance)
        assert b.grad_norm.item() == pytest.approx(a.grad_norm.item(), rel=0.1)
    assert all(p.dtype == torch.float32 for p in rounded.model.parameters())


def test_f20_fp16_overflow_halves_the_scale_and_changes_nothing() -> None:
    network = model()
    steps = stepper(network, 4, "fp16")
    before = [p.detach().clone() for p in network.parameters()]
    scale = steps.precision.scaler.get_scale()
    network.token_embedding.weight.register_hook(lambda grad: grad + float("inf"))
    assert bool(steps.take(0, 1.0).outcome == Outcome.SCALE_OVERFLOW)
    assert steps.precision.scaler.get_scale() == scale / 2
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_the_precision_of_others_is_put_back() -> None:
    before = torch.get_float32_matmul_precision()
    with Precision("tf32", CPU).arithmetic():
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before
