"""AdamW: what decays, and that it is the published algorithm."""

import pytest
import torch
from torch import nn

from fromscratch.config.train import AdamW


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3), nn.LayerNorm(3))


@pytest.mark.parametrize(("decay", "decaying"), [("matrices", {"0.weight", "1.weight"}), ("all", None)])
def test_what_decays(decay: str, decaying: set[str] | None) -> None:
    network = model()
    optimizer = AdamW.model_validate({"decay": decay, "weight_decay": 0.3}).build(list(network.named_parameters()))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(found) == 5
    assert {name for name, share in found.items() if share == 0.3} == (decaying or set(found))


def test_one_step_is_the_published_update() -> None:
    network = model()
    before = network[1].weight.detach().clone()
    optimizer = AdamW(learning_rate=0.01, weight_decay=0.1, beta1=0.9, beta2=0.95).build(
        list(network.named_parameters())
    )
    network(torch.tensor([1, 2])).square().sum().backward()
    gradient = network[1].weight.grad.clone()
    optimizer.step()
    # After one step the bias-corrected moments are the gradient and its square.
    expected = before * (1 - 0.01 * 0.1) - 0.01 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(network[1].weight.detach(), expected)
