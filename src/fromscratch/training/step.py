"""One optimiser step: losses and gradients of a global batch, then one careful update."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fromscratch.models.dropout import set_sequence_keys
from fromscratch.training.batches import Batches, MicroBatch
from fromscratch.training.gradients import Clip, global_norm, gradients_of
from fromscratch.training.precision import Precision

Loss = Callable[[nn.Module, MicroBatch], Tensor]


@dataclass(frozen=True)
class StepResult:
    """What happened in a step, still on the device as 0-d tensors."""

    loss: Tensor
    """Mean over the global batch, nats per token."""
    loss_min: Tensor
    loss_max: Tensor
    """Lowest and highest mean of a micro-batch."""
    grad_norm: Tensor
    """Before clipping."""
    clipped: Tensor
    nonfinite: Tensor
    """Whether the gradients held a NaN or infinity; such a step changes nothing."""


def next_token_losses(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Cross-entropy of every next token in nats: [batch, time]."""
    losses: Tensor = model.losses(batch.inputs, batch.targets)  # type: ignore[operator]
    return losses


class Stepper:
    """Takes steps: everything that turns a global batch into changed weights."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Batches,
        *,
        loss: Loss,
        clip: Clip,
        precision: Precision,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.precision = precision
        self._batches = batches
        self._loss = loss
        self._clip = clip

    def take(self, step: int, learning_rate: float) -> StepResult:
        """Trains on the global batch of one step at the given learning rate."""
        self.model.train()
        micro_losses = self._accumulate_gradients(step)
        self.precision.unscale(self.optimizer)
        gradients = gradients_of(self.model.parameters())
        norm = global_norm(gradients)
        nonfinite = ~torch.isfinite(norm)
        clipped = self._clip(gradients, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        step_unless(nonfinite, self.optimizer)
        self.precision.update_scale()
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(
            loss=micro_losses[:, 0].sum() / self._batches.targets_per_step,
            loss_min=(micro_losses[:, 0] / micro_losses[:, 1]).min(),
            loss_max=(micro_losses[:, 0] / micro_losses[:, 1]).max(),
            grad_norm=norm,
            clipped=clipped,
            nonfinite=nonfinite,
        )

    def _accumulate_gradients(self, step: int) -> Tensor:
        """Gradients of the mean loss; returns sum of losses and number of targets, [micro-batches, 2]."""
        sums = []
        for batch in self._batches.micro_batches(step):
            set_sequence_keys(self.model, batch.sequence_keys)
            with self.precision.arithmetic():
                total = self._loss(self.model, batch).sum()
            self.precision.backward(total / self._batches.targets_per_step)
            sums.append(torch.stack([total.detach(), total.new_tensor(batch.targets.numel())]))
        set_sequence_keys(self.model, None)
        return torch.stack(sums)


def step_unless(bad: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Updates the weights, or changes neither weights nor optimiser state where ``bad`` is true.

    Fused optimisers take the flag as a tensor (``found_inf``, made for loss scaling), so the device
    is not waited for; others are asked first. Multiplying the update by zero would not do: 0 x NaN
    is NaN.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]
    elif not bad.item():
        optimizer.step()
