"""One optimiser step: losses and gradients of a global batch, then one careful update."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fromscratch.machine.memory import is_memory_error
from fromscratch.machine.precision import Precision
from fromscratch.models.dropout import set_sequence_keys
from fromscratch.processes.world import ALONE, World
from fromscratch.training.batches import Batches, MicroBatch
from fromscratch.training.gradients import Clip, Outcome, classify, global_norm, gradients_of
from fromscratch.training.nonfinite import NonfinitePolicy, step_unless

Loss = Callable[[nn.Module, MicroBatch], Tensor]


@dataclass(frozen=True)
class StepResult:
    """What happened in a step, still on the device as 0-d tensors; the same in every process."""

    loss: Tensor
    """Mean over the global batch, nats per token."""
    loss_min: Tensor
    loss_max: Tensor
    """Lowest and highest mean of a micro-batch."""
    grad_norm: Tensor
    """Before clipping."""
    clipped: Tensor
    outcome: Tensor
    """An ``Outcome``: normal, clipped, or one of the ways in which gradients are not finite."""
    spike: Tensor
    """Whether the step was held back because of its loss."""


def next_token_losses(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Cross-entropy of every next token in nats: [batch, time]."""
    losses: Tensor = model.losses(batch.inputs, batch.targets)  # type: ignore[operator]
    return losses


@dataclass(frozen=True)
class GradientRules:
    """What happens to gradients between backward and step."""

    clip: Clip
    policy: NonfinitePolicy


class OutOfMemoryTogetherError(torch.OutOfMemoryError):
    """A process lacks memory for a piece of the step; raised in all alike, before any weight has changed."""


class LossModule(nn.Module):
    """A model and its loss as one module, because DistributedDataParallel watches ``forward``."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: MicroBatch) -> Tensor:
        """The sum of a micro-batch's losses, 0-d."""
        return self._loss(self.model, batch).sum()


class Stepper:
    """Takes steps: everything that turns a global batch into changed weights."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Batches,
        *,
        loss: Loss,
        rules: GradientRules,
        precision: Precision,
        seed: int,
        world: World = ALONE,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.batches = batches
        self.rules = rules
        self.precision = precision
        self._seed = seed
        self._world = world
        self._loss_module: nn.Module = LossModule(model, loss)
        if world.size > 1:
            self._loss_module = DistributedDataParallel(self._loss_module, gradient_as_bucket_view=True)

    def take(self, step: int, learning_rate: float, *, is_spike: Callable[[float], bool] | None = None) -> StepResult:
        """Trains on the global batch of one step at the given learning rate.

        Args:
            is_spike: asked about the loss before anything changes; a step of which it says yes changes
                nothing. Asking waits for the device.

        Raises:
            OutOfMemoryTogetherError: in every process, where one lacks memory; the step can be taken again.
            RuntimeError: out of memory in this process alone, in the last backward pass.
        """
        self.model.train()
        loss, loss_min, loss_max = self._accumulate_gradients(step)
        self.precision.unscale(self.optimizer)
        gradients = gradients_of(self.model.parameters())
        norm = global_norm(gradients)
        scaled = self.precision.scaler.is_enabled()
        outcome = classify(gradients, norm, scaled=scaled, loss=loss)
        clipped = self.rules.clip(gradients, norm)
        outcome = torch.where(clipped & (outcome == Outcome.NORMAL), int(Outcome.CLIPPED), outcome)
        spike = torch.zeros_like(clipped)
        if is_spike is not None and is_spike(float(loss)):
            spike = ~spike
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.rules.policy.update(self.optimizer, outcome, hold=spike, step=step, seed=self._seed)
        self.precision.update_scale()
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(loss, loss_min, loss_max, norm, clipped, outcome, spike)

    def rehearse(self, step: int) -> bool:
        """Whether the largest piece of a step fits into memory beside what else a step keeps there; changes nothing."""
        batches = self.batches.micro_batches(step)
        try:
            self._make_optimizer_state()
            if self.batches.num_micro_batches > 1:
                self.hold_gradients()
            with self._apart():
                self._backward(self._forward(next(batches)))
        except RuntimeError as error:
            if not is_memory_error(error):
                raise
            return False
        finally:
            self.forget_gradients()
        return True

    def hold_gradients(self) -> None:
        """Gradients of zero, which take the memory that those of earlier pieces take in the passes of later ones."""
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def forget_gradients(self) -> None:
        """Drops gradients, and the device's memory that nobody uses."""
        self.optimizer.zero_grad(set_to_none=True)
        set_sequence_keys(self.model, None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _accumulate_gradients(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the mean loss of the global batch; returns that loss, and the band it lies in.

        Processes add up their gradients during the last backward pass only, and before it they agree
        that all have had memory so far: one that waited alone in that pass would wait for ever.
        """
        sums, means = [], []
        is_short = False
        try:
            self._make_optimizer_state()
            for place, batch in enumerate(self.batches.micro_batches(step), 1):
                with self._apart():
                    total = self._forward(batch)
                    if place < self.batches.num_micro_batches:
                        self._backward(total)
                sums.append(total.detach())
                means.append(total.detach() / batch.targets.numel())
                self._world.heartbeat()
        except RuntimeError as error:
            if not is_memory_error(error):
                raise
            is_short = True  # and no reference to the error, which would keep the memory
        if self._world.any(is_short):
            raise OutOfMemoryTogetherError("out of memory in at least one process")
        self._expect_sums()
        self._backward(total)
        set_sequence_keys(self.model, None)
        return self._together(torch.stack(sums).sum(), torch.stack(means))

    def _make_optimizer_state(self) -> None:
        """Takes the memory of the optimiser's state before the first step, which could not be repeated without it.

        A fused optimiser makes its state, all zeros, in a step that it is told to hold back. Others make
        theirs in their first step.
        """
        if self.optimizer.state or not getattr(self.optimizer, "_step_supports_amp_scaling", False):
            return
        try:
            self.hold_gradients()
            device = next(self.model.parameters()).device
            step_unless(torch.ones((), dtype=torch.bool, device=device), self.optimizer)
        except RuntimeError:
            self.optimizer.state.clear()  # half a state would be taken for a whole one
            raise
        finally:
            self.optimizer.zero_grad(set_to_none=True)

    def _forward(self, batch: MicroBatch) -> Tensor:
        """The sum of a piece's losses."""
        set_sequence_keys(self.model, batch.sequence_keys)
        with self.precision.arithmetic():
            total: Tensor = self._loss_module(batch)
        return total

    def _backward(self, total: Tensor) -> None:
        """Adds a piece's part to the gradients."""
        # DistributedDataParallel takes the mean over processes, and what is wanted is the sum.
        self.precision.backward(total * (self._world.size / self.batches.targets_per_step))

    def _expect_sums(self) -> None:
        """The next backward pass adds up the gradients of all processes.

        DistributedDataParallel would decide that in forward, and after a forward pass without its
        backward pass there would be no way back.
        """
        if isinstance(self._loss_module, DistributedDataParallel):
            self._loss_module.reducer.prepare_for_backward([])

    def _apart(self) -> AbstractContextManager[None]:
        """Inside, gradients stay in this process."""
        if isinstance(self._loss_module, DistributedDataParallel):
            return self._loss_module.no_sync()
        return nullcontext()

    def _together(self, total: Tensor, means: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, lowest and highest mean of a micro-batch, over all processes: one exchange."""
        here = torch.stack([total, means.min(), means.max()])
        everywhere = [here]
        if self._world.size > 1:
            everywhere = [torch.empty_like(here) for _ in range(self._world.size)]
            dist.all_gather(everywhere, here)
        totals, lowest, highest = torch.stack(everywhere).unbind(1)
        return totals.sum() / self.batches.targets_per_step, lowest.min(), highest.max()
