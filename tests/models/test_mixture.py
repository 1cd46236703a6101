"""A mixture of experts: its losses, its capacity, its products, and what it costs."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fromscratch.config.model import GPTConfig
from fromscratch.models import mixture
from fromscratch.models.costs import model_costs
from fromscratch.models.mechanism import Sizes
from fromscratch.models.mixture import MixtureOfExperts

WIDTH, MIDDLE, EXPERTS, BATCH, TIME = 12, 20, 4, 3, 9
SIZES = Sizes(31, TIME, 2, 2, WIDTH, dropout=0.0, attention_bias=True, tied_head=True)


def network(active_experts: int = 2, capacity: float | None = None) -> MixtureOfExperts:
    settings: dict[str, Any] = {"hidden_dim": MIDDLE, "balance_loss": 0.1, "router_z_loss": 0.1, "capacity": capacity}
    made = MixtureOfExperts(SIZES, 0, experts=EXPERTS, active_experts=active_experts, **settings)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.0, 0.5, generator=generator)
    return made


def inputs() -> Tensor:
    return torch.randn(BATCH, TIME, WIDTH, generator=torch.Generator().manual_seed(3))


def explicit(made: MixtureOfExperts, x: Tensor, capacity: float | None = None) -> tuple[Tensor, int]:
    """Token by token: the output, and how many choices the capacity drops."""
    output, dropped, k = torch.zeros_like(x), 0, made.active_experts
    for b in range(len(x)):
        room = [float("inf") if capacity is None else -(-capacity * TIME * k // EXPERTS)] * EXPERTS
        for t in range(TIME):
            probabilities = (made.router.weight @ x[b, t]).softmax(0)
            values, chosen = probabilities.sort(descending=True)
            weights = values[:k] / (values[:k].sum() if k > 1 else 1.0)
            for expert, weight in zip(chosen[:k].tolist(), weights, strict=True):
                room[expert] -= 1
                if room[expert] < 0:
                    dropped += 1
                    continue
                gate, up = (made.gate_up[expert] @ x[b, t]).chunk(2)
                output[b, t] = output[b, t] + weight * (made.output[expert] @ (F.silu(gate) * up))
    return output, dropped


@pytest.mark.parametrize("active_experts", [1, 2, 4])
@pytest.mark.parametrize("capacity", [None, 0.5, 1.0])
def test_outputs_gradients_and_dropped_tokens_are_those_token_by_token(
    active_experts: int, capacity: float | None
) -> None:
    made, x = network(active_experts, capacity), inputs().requires_grad_()
    wanted, dropped = explicit(made, x, capacity)
    found, auxiliary = made.forward_with_auxiliary(x)
    torch.testing.assert_close(found, wanted)
    of = [x, *made.parameters()]
    gradients = [torch.autograd.grad(output.sin().sum(), of) for output in (found, wanted)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    if capacity is None:
        assert "dropped_share" not in auxiliary
    else:
        share = float(auxiliary["dropped_share"].values.mean())
        assert share == pytest.approx(dropped / (BATCH * TIME * active_experts)) and auxiliary["dropped_share"][1] == 0
    torch.testing.assert_close(made(x), explicit(made, x)[0])  # generation and evaluation drop nothing


def test_what_capacity_drops_depends_on_earlier_tokens_alone() -> None:
    made, x = network(2, 0.6), inputs()
    changed = x.clone()
    changed[:, 5:] = torch.randn(BATCH, TIME - 5, WIDTH)
    one, other = (made.forward_with_auxiliary(values)[0] for values in (x, changed))
    assert torch.equal(one[:, :5], other[:, :5]) and not torch.equal(one, other)


def test_the_balance_loss_is_that_of_transformers_and_z_is_by_hand() -> None:
    theirs = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    made, x = network(), inputs()
    _, auxiliary = made.forward_with_auxiliary(x)
    logits = x @ made.router.weight.T
    for b in range(BATCH):
        wanted = theirs.load_balancing_loss_func((logits[b],), EXPERTS, 2)
        torch.testing.assert_close(auxiliary["balance_loss"].values[b], wanted)
    torch.testing.assert_close(auxiliary["router_z_loss"].values, logits.exp().sum(-1).log().square().mean(1))


@torch.no_grad()
def test_even_use_has_the_lowest_balance_loss() -> None:
    made = network(1)
    made.router.weight.copy_(torch.eye(EXPERTS, WIDTH))
    tokens = 9.0 * torch.eye(EXPERTS, WIDTH).repeat(2, 1)[None]  # two tokens for each expert
    even = made.forward_with_auxiliary(tokens)[1]["balance_loss"].values
    uneven = made.forward_with_auxiliary(tokens[:, :1].expand(1, 8, WIDTH))[1]["balance_loss"].values
    assert float(even) == pytest.approx(1.0) and float(uneven) == pytest.approx(EXPERTS, rel=0.01)


@pytest.mark.parametrize("ends", [[2, 2, 5, 7], [0, 0, 0, 7], [7, 7, 7, 7]])
def test_products_of_experts_without_rows(ends: list[int]) -> None:
    rows, matrices = torch.randn(7, 6, dtype=torch.float64), torch.randn(4, 5, 6, dtype=torch.float64)
    tensors = (rows.requires_grad_(), matrices.requires_grad_())
    stops = torch.tensor(ends, dtype=torch.int32)
    owner = torch.bucketize(torch.arange(7), stops, right=True)
    found = mixture.expert_products(rows, matrices, stops)
    torch.testing.assert_close(found, torch.einsum("ri,roi->ro", rows, matrices[owner]))
    assert torch.autograd.gradcheck(lambda r, m: mixture.expert_products(r, m, stops), tensors)
    torch.library.opcheck(mixture.expert_products, (rows, matrices, stops))


def test_bf16_is_fp32_rounded() -> None:
    made, x = network(), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        found = made(x)
    assert found.dtype == torch.bfloat16
    assert (found.float() - made(x)).norm() < 0.02 * made(x).norm()


def test_active_parameters_and_operations_by_hand() -> None:
    shape = {"vocab_size": 31, "context_length": 8, "num_layers": 3, "num_heads": 2, "embedding_dim": 12}
    settings = {"kind": "mixture", "experts": 4, "active_experts": 2, "hidden_dim": 20}
    costs = model_costs(GPTConfig.model_validate({**shape, "feedforward": settings}))
    of_one_expert = 3 * 12 * 20
    assert costs.parameters - costs.active_parameters == 3 * 2 * of_one_expert
    dense = model_costs(GPTConfig.model_validate({**shape, "feedforward": {"kind": "swiglu", "hidden_dim": 40}}))
    assert costs.active_parameters == dense.active_parameters + 3 * 4 * 12  # the routers
    assert costs.forward_flops_per_token == dense.forward_flops_per_token + 2 * 3 * 4 * 12
    assert costs.six_n_flops_per_token == 6 * costs.active_parameters
    assert dense.active_parameters == dense.parameters


def test_more_active_experts_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match=r"active_experts = 9 is more than experts = 8; lower it"):
        GPTConfig.model_validate({"feedforward": {"kind": "mixture", "active_experts": 9}})
