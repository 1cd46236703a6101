"""Several optimisers and parameter groups as one."""

import pytest
import torch
from torch import Tensor, nn

from fromscratch.errors import DataError
from fromscratch.optim.composite import CompositeOptimizer, as_composite
from fromscratch.training.nonfinite import move_randomly

HOLD, GO = torch.tensor(True), torch.tensor(False)


def network() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))


def composite(model: nn.Sequential) -> CompositeOptimizer:
    """Matrices by AdamW, biases by SGD with momentum, which cannot take a flag on the device."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    biases = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices[:1], "lr": 0.4}, {"params": matrices[1:], "lr": 0.1}]
    return CompositeOptimizer(
        torch.optim.AdamW(groups, lr=1.0, fused=True), torch.optim.SGD(biases, lr=0.02, momentum=0.9)
    )


def give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def tensors(model: nn.Module, optimizer: CompositeOptimizer) -> list[Tensor]:
    state = optimizer.state_tensors(model.named_parameters())
    return [tensor.clone() for tensor in [*model.parameters(), *(state[name] for name in sorted(state))]]


def test_a_schedule_is_a_factor_on_each_groups_own_rate() -> None:
    optimizer = composite(network())
    for factor in (0.5, 1.0, 0.25):
        optimizer.set_rate_factor(factor)
        assert [group["lr"] for group in optimizer.param_groups] == [0.4 * factor, 0.1 * factor, 0.02 * factor]


def test_it_steps_like_its_parts_by_themselves() -> None:
    model, alone = network(), network()
    together = composite(model)
    parts = composite(alone).optimizers
    for step in range(3):
        give_gradients(model, step)
        give_gradients(alone, step)
        together.step_unless(GO)
        for part in parts:
            part.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), alone.parameters(), strict=True))


def test_a_held_step_changes_nothing_in_any_part() -> None:
    model = network()
    optimizer = composite(model)
    give_gradients(model, 0)
    optimizer.step_unless(GO)
    before = tensors(model, optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.step_unless(HOLD)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(model, optimizer), strict=True))


def test_state_is_saved_by_name_and_resumed_to_the_bit() -> None:
    untouched, stopped, resumed = network(), network(), network()
    optimizers = [composite(model) for model in (untouched, stopped, resumed)]
    for step in range(4):
        for model, optimizer in zip((untouched, stopped), optimizers, strict=False):
            if model is untouched or step < 2:
                give_gradients(model, step)
                optimizer.step_unless(GO)
    state = optimizers[1].state_tensors(stopped.named_parameters())
    assert {"0.weight/exp_avg", "0.bias/momentum_buffer"} <= state.keys()
    resumed.load_state_dict(stopped.state_dict())
    optimizers[2].load_state_tensors(resumed.named_parameters(), {k: v.clone() for k, v in state.items()}, "here")
    for step in (2, 3):
        give_gradients(resumed, step)
        optimizers[2].step_unless(GO)
    ends = tensors(untouched, optimizers[0]), tensors(resumed, optimizers[2])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_state_of_parameters_that_are_not_there_is_refused() -> None:
    model = network()
    with pytest.raises(DataError, match=r"here: state of unknown parameters 9\.weight"):
        composite(model).load_state_tensors(model.named_parameters(), {"9.weight/exp_avg": torch.ones(1)}, "here")


def test_state_that_no_checkpoint_could_hold_is_an_error() -> None:
    model = network()
    optimizer = composite(model)
    optimizer.optimizers[0].state[model[0].weight] = {"history": [1, 2]}
    with pytest.raises(TypeError, match=r"0\.weight/history is list"):
        optimizer.state_tensors(model.named_parameters())


def test_a_random_step_moves_the_parameters_of_all_parts() -> None:
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    move_randomly(composite(model), 0.5, torch.Generator().manual_seed(1))
    moved = [a - b for a, b in zip(model.parameters(), before, strict=True)]
    assert all(bool(m.any()) for m in moved)
    assert torch.linalg.vector_norm(torch.stack([m.norm() for m in moved])).item() == pytest.approx(0.5, rel=1e-5)


def test_one_optimiser_is_a_composite_of_one() -> None:
    plain = torch.optim.SGD(network().parameters(), lr=0.1)
    one = as_composite(plain)
    assert one.optimizers == (plain,) and as_composite(one) is one
