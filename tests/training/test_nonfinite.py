"""All policies with injected NaN and infinities, and how steps are classified."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fromscratch.errors import DivergedError
from fromscratch.training.gradients import Gradients, Outcome, classify
from fromscratch.training.nonfinite import Apply, NonfinitePolicy, Raise, RandomStep, Skip
from fromscratch.training.step import StepResult
from tests.training.test_step import model, snapshot, stepper

LOSS = torch.tensor(2.0)


@pytest.mark.parametrize(
    ("values", "scaled", "loss", "outcome"),
    [
        ([1.0, 2.0], False, 2.0, Outcome.NORMAL),
        ([1e30, 1e30], False, 2.0, Outcome.INFINITE_NORM),
        ([1e30, 1e30], True, 2.0, Outcome.INFINITE_NORM),
        ([1.0, math.nan], False, 2.0, Outcome.NONFINITE),
        ([1.0, math.inf], False, 2.0, Outcome.NONFINITE),
        ([1.0, math.inf], True, 2.0, Outcome.SCALE_OVERFLOW),
        ([1.0, math.nan], True, math.nan, Outcome.NONFINITE),
    ],
)
def test_classes(values: list[float], scaled: bool, loss: float, outcome: Outcome) -> None:
    gradients = Gradients([torch.tensor(values), torch.zeros(3)])
    found = classify(gradients, scaled=scaled, loss=torch.tensor(loss))
    assert Outcome(int(found)) is outcome


def take_bad_step(policy: NonfinitePolicy, bad: float = math.inf) -> tuple[StepResult, list[Tensor], list[Tensor], int]:
    """Weights and moments before and after a step whose gradients were poisoned."""
    network = model()
    steps = stepper(network, 4, policy=policy)
    steps.take(0, 1.0)
    before = snapshot(network, steps.optimizer)
    network.blocks[0].feedforward.up.weight.register_hook(lambda grad: grad.index_fill(0, torch.tensor([1]), bad))
    result = steps.take(1, 1.0)
    return result, before, snapshot(network, steps.optimizer), len(list(network.parameters()))


@pytest.mark.parametrize("policy", [Skip(10), Raise()], ids=["skip", "raise"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nothing_moves(policy: NonfinitePolicy, bad: float) -> None:
    result, before, after, _ = take_bad_step(policy, bad)
    assert int(result.outcome) == Outcome.NONFINITE
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_random_step_has_the_length_asked_for_and_leaves_the_moments() -> None:
    results = [take_bad_step(RandomStep(norm=0.25, max_in_a_row=10)) for _ in range(2)]
    (_, before, after, count), (_, _, again, _) = results
    moved = [a - b for a, b in zip(after[:count], before[:count], strict=True)]
    length = torch.linalg.vector_norm(torch.stack([m.norm() for m in moved]))
    assert length.item() == pytest.approx(0.25, rel=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(before[count:], after[count:], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(after, again, strict=True)), "it is drawn from a named stream"


def test_apply_takes_the_step_and_ruins_the_weights() -> None:
    _, _, after, count = take_bad_step(Apply(10))
    assert any(not torch.isfinite(tensor).all() for tensor in after[:count])


@pytest.mark.parametrize("policy", [Apply(10), RandomStep(norm=1.0, max_in_a_row=10)], ids=["apply", "random-step"])
def test_f20_an_overflow_of_the_loss_scale_alone_never_moves_anything(policy: NonfinitePolicy) -> None:
    network = model()
    steps = stepper(network, 4, "fp16", policy)
    before = [p.detach().clone() for p in network.parameters()]
    network.final_norm.weight.register_hook(lambda grad: grad * math.inf)
    result = steps.take(0, 1.0)
    assert int(result.outcome) == Outcome.SCALE_OVERFLOW
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize("make", [Skip, Apply, lambda most: RandomStep(norm=1.0, max_in_a_row=most)])
def test_too_many_in_a_row_end_the_run(make: Callable[[int], NonfinitePolicy]) -> None:
    make(3).check(step=7, in_a_row=2)
    with pytest.raises(DivergedError, match="step 7: 3 steps in a row"):
        make(3).check(step=7, in_a_row=3)


def test_raise_ends_it_at_the_first() -> None:
    Raise().check(step=1, in_a_row=0)
    with pytest.raises(DivergedError, match="step 1"):
        Raise().check(step=1, in_a_row=1)
