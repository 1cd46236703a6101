"""Clipping and policies against torch's own and against hand values."""

import pytest
import torch
from torch import nn

from fromscratch.optim.composite import CompositeOptimizer
from fromscratch.training import gradients as gradients_module
from fromscratch.training.gradients import ClipByNorm, ClipByValue, Gradients, NoClip, classify


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


@pytest.mark.parametrize("worst", [1.0, 1e19, 3e19, float("inf"), float("-inf"), float("nan")])
def test_one_pass_in_fp64_tells_what_two_in_fp32_tell(worst: float, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [torch.tensor([0.5, worst]), torch.ones(3)]
    found = []
    for devices in (set(), {"cpu"}):
        monkeypatch.setattr(gradients_module, "WIDE_NORM_DEVICES", devices)
        gradients = Gradients([tensor.clone() for tensor in tensors])
        finite = bool(gradients.elements_are_finite())
        found.append((gradients.norm, finite, int(classify(gradients, scaled=False, loss=torch.ones(())))))
    torch.testing.assert_close(found[0][0], found[1][0], equal_nan=True)
    assert found[0][1:] == found[1][1:] and found[1][0].dtype == torch.float32


@pytest.mark.parametrize("max_norm", [0.1, 1e9])
def test_clipping_inside_the_optimiser_is_clipping(max_norm: float) -> None:
    results = []
    for defers in (False, True):
        parameter = nn.Parameter(torch.arange(5.0))
        parameter.grad = torch.arange(5.0) - 1.5
        before = parameter.grad.clone()
        optimizer = CompositeOptimizer(torch.optim.AdamW([parameter], lr=0.1, eps=0.1, fused=True))
        gradients = Gradients.of([parameter], defers_scale=defers)
        clipped = ClipByNorm(max_norm)(gradients)
        assert bool(clipped) == (max_norm == 0.1)
        assert torch.equal(parameter.grad, before) or not defers
        assert optimizer.takes_divisor and (gradients.divisor is None) != defers
        held = parameter.detach().clone()
        optimizer.step_unless(torch.ones((), dtype=torch.bool), divisor=gradients.divisor)
        assert torch.equal(parameter, held)
        optimizer.step_unless(torch.zeros((), dtype=torch.bool), divisor=gradients.divisor)
        results.append(parameter.detach().clone())
    assert not torch.equal(results[0], torch.arange(5.0))
    torch.testing.assert_close(results[0], results[1])
