"""Multi-token prediction: in training, further blocks predict the tokens after the next one.

Block k takes the place of the last block, and predicts the token k places after the next, through the model's own final
norm and head. Evaluation and generation do not use these blocks.

Source: Gloeckle et al. 2024, "Better & Faster Large Language Models via Multi-token Prediction", section 2: independent
output heads of one transformer layer each on a shared trunk. DeepSeek-V3's form chains its blocks, and needs a
projection of hidden state and embedding for each.

Letters: B batch, T time, D embedding.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .gpt import Block
from .mechanism import Auxiliaries, Auxiliary, Init, Sizes, Slots, forward_flops

Losses = Callable[[Tensor, Tensor], Tensor]


class ParallelBlocks(nn.Module):
    """One block for each token after the next one.

    Args:
        tokens: number of further tokens that each position predicts.
        coefficient: weight of their mean cross-entropy in what training minimises.
    """

    def __init__(self, sizes: Sizes, slots: Slots, *, tokens: int, coefficient: float) -> None:
        super().__init__()
        self.coefficient = coefficient
        self.blocks = nn.ModuleList(Block(sizes, sizes.num_layers - 1, slots) for _ in range(tokens))

    def auxiliary(self, hidden: list[Tensor], losses: Losses, targets: Tensor, counts: Tensor | None) -> Auxiliaries:
        """The mean cross-entropy of the further tokens of each sequence, over those that it has and that count.

        Args:
            hidden: the normalised output [B, T, D] of each block.
            losses: of the head, from hidden states and ids to nats.
            targets: next tokens [B, T].
            counts: which of them count, [B, T]; None is all.
        """
        counts = torch.ones_like(targets, dtype=torch.bool) if counts is None else counts
        means = []
        for ahead, states in enumerate(hidden, start=1):
            further = losses(states[:, :-ahead], targets[:, ahead:].clamp(min=0))  # [B, T - ahead]
            is_counted = counts[:, ahead:]
            means.append((further * is_counted).sum(1) / is_counted.sum(1).clamp(min=1))
        return {"multi_token_loss": Auxiliary(torch.stack(means).mean(0), self.coefficient)}

    def reset(self, init: Init) -> None:
        """Sets the blocks."""
        for block in self.blocks:
            block.reset(init)  # type: ignore[operator]

    def forward_flops(self, context_length: int) -> float:
        """None: only training uses the blocks."""
        return 0.0

    def training_flops(self, context_length: int, head: nn.Module) -> float:
        """Operations of a forward pass of training per token: the blocks, and the head for targets that exist."""
        of_blocks = sum(forward_flops(block, context_length) for block in self.blocks)
        targets = sum(context_length - ahead for ahead in range(1, len(self.blocks) + 1))
        return of_blocks + forward_flops(head, context_length) * targets / context_length
