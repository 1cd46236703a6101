"""Clipping and policies against torch's own and against hand values."""

import pytest
import torch
from torch import nn

from fromscratch.training.gradients import ClipByNorm, ClipByValue, Gradients, NoClip


def parameters_with_gradients(scale: float = 1.0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((5, 3), (7,), (2, 2, 2))]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator) * scale
    return parameters


@pytest.mark.parametrize("scale", [0.01, 10.0])
def test_clip_by_norm_equals_torch(scale: float) -> None:
    ours, theirs = parameters_with_gradients(scale), parameters_with_gradients(scale)
    gradients = Gradients.of(ours)
    clipped = ClipByNorm(max_norm=1.5)(gradients)
    expected_norm = torch.nn.utils.clip_grad_norm_(theirs, 1.5)
    torch.testing.assert_close(gradients.norm, expected_norm)
    assert bool(clipped) == (expected_norm.item() > 1.5)
    for one, other in zip(Gradients.of(ours).tensors, Gradients.of(theirs).tensors, strict=True):
        torch.testing.assert_close(one, other)


def test_clip_by_value_equals_torch_and_tells() -> None:
    ours, theirs = parameters_with_gradients(), parameters_with_gradients()
    assert bool(ClipByValue(0.5)(Gradients.of(ours)))
    torch.nn.utils.clip_grad_value_(theirs, 0.5)
    for one, other in zip(Gradients.of(ours).tensors, Gradients.of(theirs).tensors, strict=True):
        torch.testing.assert_close(one, other)
    assert not bool(ClipByValue(100.0)(Gradients.of(ours)))


def test_no_clip_changes_nothing() -> None:
    gradients = Gradients.of(parameters_with_gradients(100.0))
    before = [g.clone() for g in gradients.tensors]
    assert not bool(NoClip()(gradients))
    assert all(torch.equal(a, b) for a, b in zip(gradients.tensors, before, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_element_makes_the_norm_not_finite(bad: float) -> None:
    gradients = Gradients.of(parameters_with_gradients())
    gradients.tensors[1][4] = bad
    assert not bool(torch.isfinite(gradients.norm)) and not bool(torch.isfinite(gradients.max_element()))
