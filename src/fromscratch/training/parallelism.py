"""How a model is spread over the processes of a world, behind one interface.

The training step and the checkpoints ask this object to wrap the model, to synchronise gradients, to
compute norms, and to gather and load state. Nothing else knows what the wrapper is.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fromscratch.files import verify_folder
from fromscratch.formats.checkpoints import (
    CARRY_FILE,
    MODEL_FILE,
    OPTIMIZER_FILE,
    Contents,
    TrainingState,
    read_state,
)
from fromscratch.formats.tensor_files import read_tensors
from fromscratch.formats.weights import fill_tensors
from fromscratch.optim.composite import CompositeOptimizer
from fromscratch.processes.world import ALONE, World, split_evenly
from fromscratch.training.objective import Carry

BUCKET_MIB = 100
"""Gradients that are sent together. ``torch.compile`` splits its graph at every bucket: with torch's 25 MiB that of
GPT-2 small has 20 parts."""


class SingleProcess:
    """One process with the whole model. The base of the other kinds."""

    computes_alone = True
    """Whether a forward pass of training waits for no other process, so that one can fail and tell the others."""

    def __init__(self, world: World = ALONE) -> None:
        self.world = world

    def prepare(self, model: nn.Module) -> None:
        """Called once, before the optimiser is built: a kind that shards parameters replaces them here."""

    def named_parameters(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """The parameters as the optimiser sees them: what this process holds of each, by the model's names."""
        return list(model.named_parameters())

    def separate_blocks(self, model: nn.Module) -> list[nn.Module]:
        """The parts of a model between which it communicates in a pass; empty where a pass does not."""
        return []

    def wrap(self, module: nn.Module) -> nn.Module:
        """Returns the module to call in forward passes; its ``forward`` computes the loss."""
        return module

    @property
    def gradient_scale(self) -> float:
        """A factor on each process's loss that makes synchronised gradients the sum over processes."""
        return 1.0

    def no_sync(self) -> AbstractContextManager[None]:
        """Inside, gradients accumulate in each process alone."""
        return nullcontext()

    def sync_next_backward(self) -> None:
        """Synchronises gradients in the next backward pass, whose forward pass ran under ``no_sync``."""

    def collect_gradients(self) -> None:
        """Called after the last backward pass of a step: gives the gradients to ``named_parameters``."""

    def whole_model(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """Yields the model for evaluation: its passes wait for no other process. All processes enter it together."""
        return nullcontext(model)

    def reduce_norm(self, local: Tensor, order: float) -> Tensor:
        """The norm over all processes, from the norm of the gradients that this process holds."""
        return local

    def gather_losses(self, values: Tensor) -> Tensor:
        """Stacks the 1-D values of all processes: [n] -> [processes, n]."""
        return values[None]

    def gather_carry(self, carry: Carry) -> Carry:
        """The rows of all processes, in the order of the global batch."""
        return carry

    def local_carry(self, carry: Carry) -> Carry:
        """This process's rows of a carry of the whole global batch."""
        return carry

    def gather(
        self, model: nn.Module, optimizer: CompositeOptimizer, carry: Carry, state: TrainingState
    ) -> Contents | None:
        """Everything that a checkpoint holds, in the main process; None in the others. All processes call it."""
        whole = self.gather_carry(carry)
        named = self.named_parameters(model)
        weights = self.gather_tensors({name: parameter.detach().contiguous() for name, parameter in named})
        states = self.gather_tensors(optimizer.state_tensors(named))
        return Contents(weights, states, state, whole) if self.world.is_main else None

    def gather_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The whole of tensors like ``named_parameters``, in the main process. All processes call it.

        Their names are ``<parameter>`` or ``<parameter>/<key>``.
        """
        return tensors

    def local_parts(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What this process holds of whole tensors, by the same names as in ``gather_tensors``."""
        return tensors

    def fill(self, model: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
        """Copies whole tensors into the weights. Raises DataError where names or shapes differ."""
        fill_tensors(dict(self.named_parameters(model)), self.local_parts(tensors), where)

    def load(self, checkpoint: Path, model: nn.Module, optimizer: CompositeOptimizer) -> tuple[TrainingState, Carry]:
        """Verifies a checkpoint and puts weights and optimiser state back.

        Returns:
            Where the run was, and this process's rows of the carry, on the CPU.

        Raises:
            DataError: damaged, or of another model.
        """
        verify_folder(checkpoint)
        self.fill(model, read_tensors(checkpoint / MODEL_FILE), checkpoint / MODEL_FILE)
        where = checkpoint / OPTIMIZER_FILE
        states = self.local_parts(read_tensors(where))
        optimizer.load_state_tensors(self.named_parameters(model), states, str(where))
        carry = read_tensors(checkpoint / CARRY_FILE) if (checkpoint / CARRY_FILE).is_file() else {}
        return read_state(checkpoint), self.local_carry(carry)


class Distributed(SingleProcess):
    """What the kinds for several processes share: each has a part of every global batch."""

    @property
    def gradient_scale(self) -> float:
        return float(self.world.size)  # torch's wrappers take the mean

    def gather_losses(self, values: Tensor) -> Tensor:
        everywhere = [torch.empty_like(values) for _ in range(self.world.size)]
        dist.all_gather(everywhere, values)
        return torch.stack(everywhere)

    def gather_carry(self, carry: Carry) -> Carry:
        return {name: self.world.all_gather(carry[name]) for name in sorted(carry)}

    def local_carry(self, carry: Carry) -> Carry:
        shards = {name: split_evenly(len(tensor), self.world.size)[self.world.rank] for name, tensor in carry.items()}
        return {name: carry[name][begin:end] for name, (begin, end) in shards.items()}


class DataParallel(Distributed):
    """A copy of the model in every process; gradients are summed (torch's DistributedDataParallel)."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._wrapper: DistributedDataParallel | None = None

    def wrap(self, module: nn.Module) -> nn.Module:
        self._wrapper = DistributedDataParallel(module, gradient_as_bucket_view=True, bucket_cap_mb=BUCKET_MIB)
        return self._wrapper

    def no_sync(self) -> AbstractContextManager[None]:
        assert self._wrapper is not None
        return self._wrapper.no_sync()

    def sync_next_backward(self) -> None:
        # The wrapper would decide this in forward. A rank that runs out of memory after that forward pass,
        # and so never runs its backward pass, would leave the others waiting.
        assert self._wrapper is not None
        self._wrapper.reducer.prepare_for_backward([])


Parallelism = SingleProcess
"""The interface: what ``SingleProcess`` offers, which every kind inherits."""


def choose_parallelism(world: World, *, is_sharded: bool = False) -> Parallelism:
    """The kind that suits the world.

    Args:
        is_sharded: whether the processes divide the model, instead of having a copy each.
    """
    if is_sharded:
        from fromscratch.training.sharding import FullySharded  # which imports this module

        return FullySharded(world)
    return DataParallel(world) if world.size > 1 else SingleProcess(world)
