"""The seam of parallelism, with a filling that is none of torch's: it counts what it is asked."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fromscratch.formats.checkpoints import Contents, TrainingState
from fromscratch.optim.composite import CompositeOptimizer
from fromscratch.processes import world as world_module
from fromscratch.processes.world import World
from fromscratch.training import parallelism
from fromscratch.training.gradients import ClipByNorm, Outcome
from fromscratch.training.objective import Carry, LossSum, MicroBatch
from fromscratch.training.parallelism import DataParallel, SingleProcess
from fromscratch.training.step import GradientRules, LossModule
from tests.training.test_step import model, stepper


class Wrapper(nn.Module):
    """What a parallelism puts around the loss module."""

    def __init__(self, inner: LossModule, log: list[str]) -> None:
        super().__init__()
        self.inner, self.log = inner, log

    def forward(self, batch: MicroBatch, carry: Carry) -> LossSum:
        self.log.append("forward")
        return self.inner(batch, carry)


class Twins(SingleProcess):
    """Pretends that another process holds the same gradients for other parameters, and had twice the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []

    def wrap(self, module: nn.Module) -> nn.Module:
        assert isinstance(module, LossModule)
        return Wrapper(module, self.log)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        self.log.append("no_sync")
        yield

    def no_sync(self) -> AbstractContextManager[None]:
        return self._apart()

    def sync_next_backward(self) -> None:
        self.log.append("sync")

    def reduce_norm(self, local: Tensor, order: float) -> Tensor:
        return local if order == float("inf") else local * 2.0**0.5

    def gather_losses(self, values: Tensor) -> Tensor:
        return torch.stack([values, 2 * values])

    def gather(
        self, model: nn.Module, optimizer: CompositeOptimizer, carry: Carry, state: TrainingState
    ) -> Contents | None:
        contents = super().gather(model, optimizer, carry, state)
        assert contents is not None
        return replace(contents, model={f"twin.{name}": tensor for name, tensor in contents.model.items()})


def test_the_step_asks_it_for_everything() -> None:
    plain, fake = stepper(model(), 4), Twins()
    shared = stepper(model(), 4, parallelism=fake)
    shared.rules = GradientRules(ClipByNorm(1e-3), shared.rules.policy)
    plain.rules = GradientRules(ClipByNorm(1e-3), plain.rules.policy)
    one, other = plain.take(0, 1.0), shared.take(0, 1.0)
    assert fake.log == ["no_sync", "forward", "no_sync", "forward", "sync"], "synchronised once, at the end"
    torch.testing.assert_close(other.grad_norm, one.grad_norm * 2.0**0.5)
    torch.testing.assert_close(other.loss, one.loss * 3)
    assert int(other.outcome) == Outcome.CLIPPED
    for a, b in zip(plain.optimizer.parameters, shared.optimizer.parameters, strict=True):
        moments = plain.optimizer.state[a]["exp_avg"], shared.optimizer.state[b]["exp_avg"]
        torch.testing.assert_close(moments[1] * 2.0**0.5, moments[0], atol=1e-9, rtol=1e-4)
    contents = shared.parallelism.gather(shared.model, shared.optimizer, shared.carry, TrainingState())
    assert contents is not None and all(name.startswith("twin.") for name in contents.model)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_rows_of_a_carry_are_divided_like_the_batch(size: int) -> None:
    carry = {"hidden": torch.arange(14.0).view(7, 2)}
    parts = [DataParallel(World(rank=rank, size=size)).local_carry(carry)["hidden"] for rank in range(size)]
    assert torch.equal(torch.cat(parts), carry["hidden"])
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_few_large_buckets_leave_a_compiled_graph_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr(parallelism, "DistributedDataParallel", lambda module, **settings: given.update(settings))
    DataParallel(World(0, 2)).wrap(nn.Linear(1, 1))
    assert given["bucket_cap_mb"] == 100 and given["gradient_as_bucket_view"] is True


@pytest.mark.parametrize("device", [torch.device("cpu"), torch.device("cuda", 1)])
def test_nccl_is_told_its_device(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(world_module, "session_store", lambda _timeout: (None, 0, 2))
    monkeypatch.setattr(dist, "init_process_group", lambda **settings: given.update(settings))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with world_module.joined_world(device) as world:
        assert (world.rank, world.size) == (0, 2)
    assert given.get("device_id") == (device if device.type == "cuda" else None)
    assert given["backend"] == ("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
