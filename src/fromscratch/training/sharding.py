"""A model whose weights, gradients and optimiser state are divided among the processes (torch's FSDP2).

Each block's weights are gathered while the block computes, those outside of blocks for the whole pass; gradients are
averaged and divided again in every backward pass. The optimiser, clipping and the averages of the weights see plain
tensors: the parts that this process holds. Source: Zhao et al. 2023, "PyTorch FSDP"; Rajbhandari et al. 2020 (ZeRO-3).
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from fromscratch.models.language_model import LanguageModel
from fromscratch.processes.world import World
from fromscratch.training.parallelism import Distributed

LOSSES = ("losses", "losses_of", "losses_and_carry")
"""Methods of a model that training calls instead of ``forward``."""


class FullySharded(Distributed):
    """Every parameter divided along its first dimension. Checkpoints hold whole tensors, as those of other kinds do."""

    computes_alone = False

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._sharded: dict[str, nn.Parameter] = {}
        self._local: dict[str, nn.Parameter] = {}
        self._plain: nn.Module | None = None
        """The model as it was before it was divided, with weights only inside of ``whole_model``."""

    def prepare(self, model: nn.Module) -> None:
        empty = {
            id(weight): nn.Parameter(weight.detach().to("meta"), requires_grad=False) for weight in model.parameters()
        }
        self._plain = copy.deepcopy(model, dict(empty))
        # the losses are a view, which nothing changes in place
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        mesh = init_device_mesh(next(model.parameters()).device.type, (self.world.size,))
        for block in _blocks(model):
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
        for name in LOSSES:
            register_fsdp_forward_method(model, name)
        self._sharded = dict(model.named_parameters())
        self._local = {
            name: nn.Parameter(_local_tensor(parameter.detach()), requires_grad=parameter.requires_grad)
            for name, parameter in self._sharded.items()
        }

    def named_parameters(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        return list(self._local.items())

    def collect_gradients(self) -> None:
        for name, parameter in self._sharded.items():
            if parameter.grad is not None:
                self._local[name].grad, parameter.grad = _local_tensor(parameter.grad), None

    def reduce_norm(self, local: Tensor, order: float) -> Tensor:
        return torch.linalg.vector_norm(self.gather_losses(local[None]), order)

    @contextmanager
    def whole_model(self, model: nn.Module) -> Iterator[nn.Module]:
        assert self._plain is not None
        whole = {name: self._whole(name, weight.detach()) for name, weight in self._local.items()}
        _set_weights(self._plain, whole)
        try:
            yield self._plain
        finally:
            _set_weights(self._plain, {name: weight.to("meta") for name, weight in whole.items()})

    def gather_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for key, tensor in tensors.items():
            whole = self._whole(key.partition("/")[0], tensor)
            if self.world.is_main:  # the others only take part; each tensor leaves the device before the next one
                found[key] = whole.cpu()
        return found

    def _whole(self, name: str, tensor: Tensor) -> Tensor:
        """The whole of a tensor like the local part of a parameter; others, such as Adam's step, are returned."""
        sharded = self._sharded[name]
        if tensor.shape != self._local[name].shape:
            return tensor
        assert isinstance(sharded, DTensor)
        whole = DTensor.from_local(
            tensor, sharded.device_mesh, sharded.placements, shape=sharded.shape, stride=sharded.stride()
        )
        return whole.full_tensor()

    def local_parts(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: self._part(key.partition("/")[0], tensor) for key, tensor in tensors.items()}

    def _part(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self._sharded or tensor.shape != self._sharded[name].shape:
            return tensor
        parts = torch.chunk(tensor, self.world.size)  # as FSDP divides: equal parts, the last ones smaller or empty
        return parts[self.world.rank].clone() if self.world.rank < len(parts) else tensor[:0]


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The layers of a model: the members of its lists of ``num_layers`` modules."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return [block for one in lists if len(one) == getattr(model, "num_layers", 0) for block in one]


def _set_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(weight, requires_grad=False))
    if isinstance(model, LanguageModel):
        model.tie_parameters()


def _local_tensor(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.to_local()
