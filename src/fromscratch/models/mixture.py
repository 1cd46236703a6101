"""A mixture of experts: a router sends each token to a few of many feed-forward networks.

The experts are SwiGLU networks, and the weights of the chosen ones sum to 1, as in Mixtral (Jiang et al. 2024, "Mixtral
of Experts", section 2.1). With one expert per token, its weight is its probability (Fedus et al. 2022, "Switch
Transformers", equation 2); a weight of 1 would give the router no gradient.

Every auxiliary loss is computed within one sequence, so that no division of a batch changes it (DeepSeek-AI 2024,
"DeepSeek-V3", equations 17 to 20, does the same).

Letters: B batch, T time, D embedding, E experts, K experts per token, M middle, N = B x T tokens, R = N x K rows.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .feedforward import default_gated_dim
from .mechanism import Auxiliaries, Auxiliary, Init, Sizes, forward_flops

OPERATORS = __name__.replace(".", "_")
"""Namespace of the operators: a published model has its own copy of this file."""
GROUPED_MULTIPLE = 8  # torch's grouped product needs rows of whole 16 bytes


class Routes(NamedTuple):
    """Where the tokens go."""

    logits: Tensor
    """The router's scores in fp32, [B, T, E]."""
    probabilities: Tensor
    """Their softmax, [B, T, E]."""
    chosen: Tensor
    """The experts of each token, the most probable first, [B, T, K]."""
    weights: Tensor
    """The weights of their outputs, [B, T, K]."""


class MixtureOfExperts(nn.Module):
    """Routes each token to ``active_experts`` of ``experts`` networks, and adds their weighted outputs.

    Args:
        hidden_dim: width of the middle of each expert; None is that of SwiGLU.
        balance_loss: coefficient of E x sum over experts of (share of choices x mean probability): K where all
            experts are used alike, more otherwise (Switch Transformers, equation 4; Mixtral's counts all K choices).
        router_z_loss: coefficient of the mean square of log(sum(exp(scores))) (Zoph et al. 2022, "ST-MoE", equation 5).
        capacity: in training, an expert takes at most ``capacity x T x K / E`` tokens of a sequence, the first ones;
            it adds nothing to the others. None: no limit. A later token never changes what an earlier one gets.
    """

    def __init__(
        self,
        sizes: Sizes,
        layer: int,
        *,
        experts: int,
        active_experts: int,
        hidden_dim: int | None,
        balance_loss: float,
        router_z_loss: float,
        capacity: float | None,
    ) -> None:
        super().__init__()
        self.active_experts = active_experts
        self.balance_loss, self.router_z_loss, self.capacity = balance_loss, router_z_loss, capacity
        width, middle = sizes.embedding_dim, hidden_dim or default_gated_dim(sizes.embedding_dim)
        self.router = nn.Linear(width, experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * middle, width))  # the gate's rows come first
        self.output = nn.Parameter(torch.empty(experts, width, middle))

    @property
    def num_idle_parameters(self) -> int:
        """Parameters of the experts that a token does not use."""
        experts = len(self.output)
        return (self.gate_up.numel() + self.output.numel()) // experts * (experts - self.active_experts)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]; no token is dropped."""
        routes = self.route(x)
        return self.mix(x, routes.chosen, routes.weights)

    def forward_with_auxiliary(self, x: Tensor) -> tuple[Tensor, Auxiliaries]:
        """As ``forward``, within the capacity; and the auxiliary losses of each sequence."""
        routes = self.route(x)
        is_chosen = (routes.chosen[..., None] == torch.arange(len(self.output), device=x.device)).int()  # [B, T, K, E]
        shares = is_chosen.sum((1, 2)) / x.shape[1]  # [B, E]
        balance = len(self.output) * (shares * routes.probabilities.mean(1)).sum(-1)
        squares = routes.logits.logsumexp(-1).square().mean(1)
        auxiliary = {
            "balance_loss": Auxiliary(balance, self.balance_loss),
            "router_z_loss": Auxiliary(squares, self.router_z_loss),
        }
        weights = routes.weights
        if self.capacity is not None:
            most = math.ceil(self.capacity * x.shape[1] * self.active_experts / len(self.output))
            queue = is_chosen.flatten(1, 2).cumsum(1).view_as(is_chosen)  # how many chose an expert so far
            is_kept = (queue * is_chosen).sum(-1) <= most
            auxiliary["dropped_share"] = Auxiliary(1.0 - is_kept.float().mean((1, 2)), 0.0)
            weights = weights * is_kept
        return self.mix(x, routes.chosen, weights), auxiliary

    def route(self, x: Tensor) -> Routes:
        """Chooses the experts of each token [B, T, D]. In fp32 whatever the precision (Switch Transformers, 2.4)."""
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.router.weight.float())
        probabilities = logits.softmax(-1)
        weights, chosen = probabilities.topk(self.active_experts, dim=-1)
        if self.active_experts > 1:
            weights = weights / weights.sum(-1, keepdim=True)
        return Routes(logits, probabilities, chosen, weights)

    def mix(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """The weighted outputs of the chosen experts: [B, T, D] and twice [B, T, K] -> [B, T, D].

        Rows are sorted by expert, so that each expert is one product, and put back in order.
        """
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        experts = chosen.flatten()
        order = experts.argsort(stable=True)
        ends = (experts[:, None] == torch.arange(len(self.output), device=x.device)).sum(0).cumsum(0).int()
        rows = x.flatten(0, 1).to(dtype)[order // self.active_experts]  # [R, D]
        gate, up = expert_products(rows, self.gate_up.to(dtype), ends).chunk(2, dim=-1)
        outputs = expert_products(F.silu(gate) * up, self.output.to(dtype), ends)  # [R, D]
        in_order = outputs[order.argsort()].view(*chosen.shape, -1)  # [B, T, K, D]
        return (in_order * weights[..., None].to(dtype)).sum(2)

    def reset(self, init: Init) -> None:
        """Sets the router and the experts."""
        init.linear(self.router)
        init.matrix(self.gate_up, fan_in=self.gate_up.shape[2])
        init.matrix(self.output, fan_in=self.output.shape[2], residual=True)

    def forward_flops(self, context_length: int) -> float:
        """The router and the experts of one token."""
        used = self.gate_up.numel() + self.output.numel() - self.num_idle_parameters
        return forward_flops(self.router, context_length) + 2 * used


@torch.library.custom_op(f"{OPERATORS}::expert_products", mutates_args=())
def expert_products(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """``rows @ matrix.T`` with the matrix of each row's expert: [R, I], [E, O, I] and [E] -> [R, O].

    ``ends``, int32, are where the rows of each expert end. The shapes depend on no data, so it can be compiled.
    """
    if _is_grouped(rows, matrices):
        return F.grouped_mm(rows, matrices.mT, offs=ends)
    return torch.cat([part @ matrix.T for part, matrix in zip(_parts(rows, ends), matrices, strict=True)])


@torch.library.custom_op(f"{OPERATORS}::matrix_gradients", mutates_args=())
def _matrix_gradients(upstream: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
    """``upstream.T @ rows`` of each expert: [R, O], [R, I] and [E] -> [E, O, I]."""
    if _is_grouped(rows, upstream):
        return F.grouped_mm(upstream.T, rows, offs=ends)
    parts = zip(_parts(upstream, ends), _parts(rows, ends), strict=True)
    return torch.stack([above.T @ part for above, part in parts])


@expert_products.register_fake
def _(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:  # noqa: ARG001
    return rows.new_empty(len(rows), matrices.shape[1])


@_matrix_gradients.register_fake
def _(upstream: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(len(ends), upstream.shape[1], rows.shape[1])


def _keep_for_backward(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
    rows, matrices, ends = ctx.saved_tensors
    upstream = upstream.contiguous()
    return expert_products(upstream, matrices.mT.contiguous(), ends), _matrix_gradients(upstream, rows, ends), None


expert_products.register_autograd(_gradients, setup_context=_keep_for_backward)


def _parts(rows: Tensor, ends: Tensor) -> list[Tensor]:
    """The rows of each expert."""
    stops = ends.tolist()
    return [rows[begin:end] for begin, end in zip([0, *stops], stops, strict=False)]


def _is_grouped(rows: Tensor, other: Tensor) -> bool:
    """Whether torch has one kernel for all experts, which does not wait for the device."""
    aligned = all(size % GROUPED_MULTIPLE == 0 for size in (rows.shape[-1], other.shape[-1], other.shape[-2]))
    return aligned and rows.device.type == "cuda" and rows.dtype == torch.bfloat16
