"""One optimiser step: losses and gradients of a global batch, then one careful update."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fromscratch.errors import DataError
from fromscratch.formats.checkpoints import Contents, TrainingState
from fromscratch.formats.weights import head_name
from fromscratch.machine.memory import is_memory_error
from fromscratch.machine.precision import Precision
from fromscratch.models.dropout import set_sequence_keys
from fromscratch.models.language_model import LanguageModel
from fromscratch.optim.composite import CompositeOptimizer
from fromscratch.training.averages import Average, WeightAverages
from fromscratch.training.gradients import Clip, Gradients, Outcome, classify
from fromscratch.training.nonfinite import NonfinitePolicy
from fromscratch.training.objective import Batches, Carry, Loss, LossSum, MicroBatch
from fromscratch.training.parallelism import Parallelism, SingleProcess


@dataclass(frozen=True)
class StepResult:
    """What happened in a step, still on the device as 0-d tensors; the same in every process."""

    loss: Tensor
    """Mean over the targets of the global batch that count, nats."""
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
    auxiliary: dict[str, Tensor] = field(default_factory=dict)
    """Means of the model's auxiliary losses over the same targets, by name. No part of ``loss``."""


@dataclass(frozen=True)
class GradientRules:
    """What happens to gradients between backward and step."""

    clip: Clip
    policy: NonfinitePolicy
    seed: int = 0
    """Names what a policy draws at random."""


class GlobalOutOfMemoryError(torch.OutOfMemoryError):
    """A process ran out of memory for a micro-batch. Raised in every process, before any weight has changed."""


class LossModule(nn.Module):
    """A model and its loss as one module, because wrappers such as DistributedDataParallel hook ``forward``."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: MicroBatch, carry: Carry) -> LossSum:
        """Scores a micro-batch."""
        return self.loss(self.model, batch, carry)


class Stepper:
    """Takes steps: everything that turns a global batch into changed weights.

    Args:
        loss: the objective's loss, compiled or not.
        carry: the model's state before the first step, of this process's sequences.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: CompositeOptimizer,
        batches: Batches,
        *,
        loss: Loss,
        rules: GradientRules,
        precision: Precision,
        parallelism: Parallelism | None = None,
        carry: Carry | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.batches = batches
        self.rules = rules
        self.precision = precision
        self.carry = self._initial_carry = carry or {}
        self.averages = WeightAverages()
        self.parallelism = parallelism or SingleProcess()
        self.loss_module = LossModule(model, loss)
        self._wrapped = self.parallelism.wrap(self.loss_module)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What this process holds of every parameter."""
        return [parameter for _, parameter in self.parallelism.named_parameters(self.model)]

    def take(self, step: int, rate_factor: float, *, is_spike: Callable[[float], bool] | None = None) -> StepResult:
        """Trains on the global batch of one step, each parameter group at its own rate times ``rate_factor``.

        Args:
            is_spike: called with the loss before anything changes. Where it returns True, the step changes
                nothing. The call waits for the device.

        Raises:
            GlobalOutOfMemoryError: in every process, where one lacks memory. The step can be taken again.
            RuntimeError: out of memory in this process alone, in the last backward pass.
        """
        self.model.train()
        (loss, loss_min, loss_max), auxiliary, carry = self._accumulate_gradients(step)
        for optimizer in self.optimizer.optimizers:
            self.precision.unscale(optimizer)
        on_cuda = loss.device.type == "cuda"
        gradients = Gradients.of(
            self.parameters,
            self.parallelism.reduce_norm,
            defers_scale=on_cuda and self.optimizer.takes_divisor,
        )
        outcome = classify(gradients, scaled=self.precision.scaler.is_enabled(), loss=loss)
        clipped = self.rules.clip(gradients)
        outcome = torch.where(clipped & (outcome == Outcome.NORMAL), int(Outcome.CLIPPED), outcome)
        spike = torch.zeros_like(clipped)
        if is_spike is not None and is_spike(float(loss)):
            spike = ~spike
        self.optimizer.set_rate_factor(rate_factor)
        self.optimizer.step_unless(spike | self.rules.policy.holds(outcome), divisor=gradients.divisor)
        self.rules.policy.after(self.optimizer, outcome, spike=spike, step=step, seed=self.rules.seed)
        self.precision.update_scale()
        self.optimizer.zero_grad()
        self._commit_carry(carry, unless=spike | (outcome >= Outcome.INFINITE_NORM))
        return StepResult(loss, loss_min, loss_max, gradients.norm, clipped, outcome, spike, auxiliary)

    def load(self, checkpoint: Path) -> TrainingState:
        """Puts everything that a checkpoint holds back. Returns where the run was. Raises DataError."""
        state, carry = self.parallelism.load(checkpoint, self.model, self.optimizer)
        shapes = [{name: tensor.shape for name, tensor in c.items()} for c in (carry, self.carry)]
        if shapes[0] != shapes[1]:
            raise DataError(f"{checkpoint}: carries {shapes[0] or 'nothing'} between batches, the model {shapes[1]}")
        self.carry = {name: tensor.to(self.carry[name].device) for name, tensor in carry.items()}
        self.precision.load_state(state.scaler)
        self.averages.load(checkpoint, state, self.parallelism.local_parts)
        return state

    def keep_averages(self, rules: dict[str, Average]) -> None:
        """Keeps averages of the weights that are trained, one by each rule; they are saved and loaded with them."""
        named = self.parallelism.named_parameters(self.model)
        trained = ((name, weight) for name, weight in named if weight.requires_grad)
        self.averages = WeightAverages.of(rules, trained)

    def untie_head(self, build_optimizer: Callable[[], CompositeOptimizer]) -> None:
        """Gives a tied head a matrix, optimiser state and averages of its own: copies of the embedding's.

        Args:
            build_optimizer: builds an optimiser without state over all parameters of the model.
        """
        model = self.model
        assert isinstance(model, LanguageModel)
        embedding = head_name(model)  # the name under which the model lists the shared matrix
        states = self.optimizer.state_tensors(model.named_parameters())
        model.untie_head()
        head, self.optimizer = head_name(model), build_optimizer()
        of_embedding = {key: state for key, state in states.items() if key.rpartition("/")[0] == embedding}
        states |= {f"{head}/{key.rpartition('/')[2]}": state.clone() for key, state in of_embedding.items()}
        self.optimizer.load_state_tensors(model.named_parameters(), states, "the tied head")
        self.averages.add(head, model.get_parameter(head), like=embedding)
        self._wrapped = self.parallelism.wrap(self.loss_module)

    def contents(self, state: TrainingState) -> Contents | None:
        """Everything that a checkpoint holds, in the main process; None in the others. All processes call it."""
        contents = self.parallelism.gather(self.model, self.optimizer, self.carry, state)
        begun = self.averages.begun(state)
        averages = {name: self.parallelism.gather_tensors(tensors) for name, tensors in begun.items()}
        return contents and replace(contents, averages=averages)

    def probe_memory(self, step: int) -> bool:
        """Whether the largest micro-batch of a step fits into memory beside everything else that a step keeps there.

        Changes nothing.
        """
        batches = self.batches.micro_batches(step)
        try:
            self._create_optimizer_state()
            self.hold_gradients()
            with self.optimizer.temporary_state(), self.parallelism.no_sync():
                if self.batches.num_micro_batches(step) == 1:
                    self.optimizer.zero_grad()
                self._backward(self._forward(next(batches), 0).objective, step)
        except RuntimeError as error:
            if not is_memory_error(error):
                raise
            return False
        finally:
            self.forget_gradients()
        return True

    def hold_gradients(self) -> None:
        """Gives parameters gradients of zero, which take the memory of accumulated ones."""
        for parameter in self.parameters:
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def forget_gradients(self) -> None:
        """Drops the gradients and the device's cached memory."""
        self.optimizer.zero_grad()
        set_sequence_keys(self.model, None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _accumulate_gradients(self, step: int) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Tensor], Carry]:
        """Computes the gradients of the mean objective of the global batch.

        Returns the mean loss and its band, the means of auxiliary losses, and the new carry.

        Gradients are synchronised in the last backward pass only. Before it, ranks agree that none ran out of
        memory; otherwise the all-reduce would deadlock.
        """
        results: list[LossSum] = []
        is_short, first = False, 0
        try:
            self._create_optimizer_state()
            for place, batch in enumerate(self.batches.micro_batches(step), 1):
                if batch.begins_text:
                    self.carry = self._initial_carry  # also where the step is held back or taken again
                with self.parallelism.no_sync():
                    result = self._forward(batch, first)
                    if place < self.batches.num_micro_batches(step):
                        self._backward(result.objective, step)
                first += len(batch.inputs)
                objective = result.objective
                results.append(_detached(result))
                self.parallelism.world.heartbeat()
        except RuntimeError as error:
            if not (is_memory_error(error) and self.parallelism.computes_alone):
                raise  # where passes wait for other processes, they cannot be asked
            is_short = True  # keeps no reference to the error, which would keep the memory
        if self.parallelism.world.any(is_short):
            raise GlobalOutOfMemoryError("out of memory in at least one process")
        self.parallelism.sync_next_backward()
        self._backward(objective, step)
        self.parallelism.collect_gradients()
        set_sequence_keys(self.model, None)
        return *self._gather_losses(results, step), _joined([result.carry for result in results])

    def _create_optimizer_state(self) -> None:
        """Allocates the optimisers' state before the first step, so that no step can run out of memory half-way.

        An optimiser that can be held back creates its state, all zeros, in a held step.
        """
        for optimizer in self.optimizer.without_state():
            try:
                self.hold_gradients()
                hold = torch.ones((), dtype=torch.bool, device=next(self.model.parameters()).device)
                CompositeOptimizer(optimizer).step_unless(hold)
            except RuntimeError:
                optimizer.state.clear()  # an incomplete state would count as a complete one
                raise
            finally:
                self.optimizer.zero_grad()

    def _forward(self, batch: MicroBatch, first: int) -> LossSum:
        """Scores a micro-batch, whose first sequence is number ``first`` of this process's shard."""
        set_sequence_keys(self.model, batch.sequence_keys, batch.kernel_key)
        rows = slice(first, first + len(batch.inputs))
        carry = {name: tensor[rows] for name, tensor in self.carry.items()}
        with self.precision.arithmetic():
            result: LossSum = self._wrapped(batch, carry)
        return result

    def _backward(self, objective: Tensor, step: int) -> None:
        """Adds a micro-batch's part to the gradients."""
        self.precision.backward(objective * (self.parallelism.gradient_scale / self.batches.targets_in(step)))

    def _gather_losses(
        self, results: list[LossSum], step: int
    ) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Tensor]]:
        """Loss, lowest and highest mean of a micro-batch, and auxiliary losses, over all processes: one collective.

        Backward divided by all targets of the global batch. Where some do not count, this corrects the
        gradients to the mean over those that do.
        """
        totals = torch.stack([result.total for result in results])
        names = list(results[0].auxiliary)
        auxiliary = [torch.stack([result.auxiliary[name].float() for result in results]).sum() for name in names]
        if all(isinstance(result.num_targets, int) for result in results):
            means = torch.stack([result.total / result.num_targets for result in results])
            local = torch.stack([totals.sum(), means.min(), means.max(), *auxiliary])
            summed, lowest, highest, *others = self.parallelism.gather_losses(local).unbind(1)
            num_targets = self.batches.targets_in(step)
            means_of = {name: sums.sum() / num_targets for name, sums in zip(names, others, strict=True)}
            return (summed.sum() / num_targets, lowest.min(), highest.max()), means_of
        counts = torch.stack([totals.new_zeros(()) + result.num_targets for result in results])
        mean_here = totals.sum() / counts.sum().clamp(min=1.0)
        means = torch.where(counts > 0, totals / counts, mean_here)  # a micro-batch may have no target that counts
        local = torch.stack([totals.sum(), means.min(), means.max(), counts.sum(), *auxiliary])
        summed, lowest, highest, counted, *others = self.parallelism.gather_losses(local).unbind(1)
        count = counted.sum().clamp(min=1.0)
        torch._foreach_mul_(Gradients.of(self.parameters).tensors, self.batches.targets_in(step) / count)
        means_of = {name: sums.sum() / count for name, sums in zip(names, others, strict=True)}
        return (summed.sum() / count, lowest.min(), highest.max()), means_of

    def _commit_carry(self, carry: Carry, *, unless: Tensor) -> None:
        """Keeps the new carry of an accepted step; a step that changed nothing keeps the old one."""
        self.carry = {name: torch.where(unless, self.carry[name], carry[name]) for name in carry}


def _detached(result: LossSum) -> LossSum:
    """The sums to report, without their graph; ``_joined`` detaches the carry."""
    auxiliary = {name: value.detach() for name, value in result.auxiliary.items()}
    return result._replace(total=result.total.detach(), auxiliary=auxiliary, penalty=0.0)


def _joined(parts: list[Carry]) -> Carry:
    """The rows of all micro-batches, without their graph."""
    return {name: torch.cat([part[name].detach() for part in parts]) for name in parts[0]}
