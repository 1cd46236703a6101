"""Out of memory: which errors mean it, and what a step takes before it can no longer be repeated."""

from typing import Any

import pytest
import torch

from fromscratch.config.model import GPTConfig
from fromscratch.config.train import TrainConfig
from fromscratch.errors import UsageError
from fromscratch.machine.acceleration import Acceleration
from fromscratch.machine.hardware import find_hardware
from fromscratch.machine.memory import is_memory_error
from fromscratch.models.gpt import GPT
from fromscratch.planning import bench
from fromscratch.planning.bench import Workload
from fromscratch.planning.bench_worker import run_request
from fromscratch.planning.fit import probe_in_process
from fromscratch.training.step import GlobalOutOfMemoryError, Stepper
from tests.training.test_step import model, snapshot, stepper

CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
SHAPE = {"vocab_size": 61, "context_length": 16, "num_layers": 1, "num_heads": 2, "embedding_dim": 16}
WORKLOAD = Workload(GPTConfig.model_validate(SHAPE), TrainConfig())


@pytest.mark.parametrize(
    ("error", "means_it"),
    [
        (torch.OutOfMemoryError("in any words"), True),
        (MemoryError(), True),
        (RuntimeError(CUBLAS), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("expected all tensors to be on the same device"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_mean_it(error: Exception, means_it: bool) -> None:
    assert is_memory_error(error) == means_it


def count_held_gradients(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Notes, at each training pass, how many parameters have gradients before it."""
    held, losses = [], GPT.losses

    def watched(network: GPT, *arguments: torch.Tensor) -> torch.Tensor:
        if network.training:
            held.append(sum(p.grad is not None for p in network.parameters()))
        return losses(network, *arguments)

    monkeypatch.setattr(GPT, "losses", watched)
    return held


@pytest.mark.parametrize(
    ("micro_batch", "holds"), [(2, True), (8, False)], ids=["several micro-batches", "one micro-batch"]
)
def test_probe_memory_takes_the_memory_of_a_step_and_changes_nothing(
    micro_batch: int, holds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed, untouched = stepper(model(), micro_batch), stepper(model(), micro_batch)
    held = count_held_gradients(monkeypatch)
    assert probed.probe_memory(0)
    parameters = list(probed.model.parameters())
    assert held == [len(parameters) if holds else 0]
    assert set(probed.optimizer.state) == set(parameters)
    assert all(p.grad is None for p in parameters)
    assert all(not tensor.any() for state in probed.optimizer.state.values() for tensor in state.values())
    for step in range(3):
        probed.take(step, 1.0), untouched.take(step, 1.0)
    ends = [snapshot(one.model, one.optimizer) for one in (probed, untouched)]
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_no_memory_for_the_optimisers_state_is_found_before_anything_moves(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, untouched = stepper(model(), 4, precision), stepper(model(), 4, precision)
    (adamw,) = short.optimizer.optimizers
    step, left = adamw.step, [1]

    def fails_once(*arguments: Any, **options: Any) -> Any:
        if left.pop():
            first = next(short.model.parameters())
            adamw.state[first]["step"] = torch.zeros(())  # as far as it came
            raise RuntimeError(CUBLAS)
        return step(*arguments, **options)

    monkeypatch.setattr(adamw, "step", fails_once)
    with pytest.raises(GlobalOutOfMemoryError):
        short.take(0, 1.0)
    monkeypatch.undo()
    for number in range(3):
        short.take(number, 1.0), untouched.take(number, 1.0)
    ends = [snapshot(one.model, one.optimizer) for one in (short, untouched)]
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_other_errors_of_a_step_and_of_probe_memory_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a kernel of another architecture")

    monkeypatch.setattr(GPT, "losses", broken)
    for attempt in (Stepper.probe_memory, lambda steps, step: steps.take(step, 0.1)):
        with pytest.raises(RuntimeError, match="another architecture"):
            attempt(stepper(model(), 4), 0)


@pytest.mark.parametrize("as_memory_probe", [True, False])
def test_a_probe_holds_what_a_run_holds(as_memory_probe: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    held = count_held_gradients(monkeypatch)
    request = {
        "model": SHAPE,
        "train": {},
        "case": {"micro_batch": 2, "precision": "fp32"},
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "steps": 2,
        "max_seconds": 100.0,
        "as_memory_probe": as_memory_probe,
    }
    assert run_request(request)["error"] is None
    assert len(held) == 4 and all(bool(count) == as_memory_probe for count in held[1:])  # the first has other memory
    monkeypatch.setattr(GPT, "losses", lambda *_: (_ for _ in ()).throw(RuntimeError(CUBLAS)))
    assert run_request(request)["error"] == bench.OUT_OF_MEMORY


def test_whatever_a_process_says_last_memory_is_why_it_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = f"RuntimeError: {CUBLAS}\nterminate called without an active exception\n"
    monkeypatch.setattr(bench, "WORKER", ["sh", "-c", 'cat > /dev/null; printf %s "$0" >&2; exit 1', messages])
    probe = probe_in_process(WORKLOAD, find_hardware("cpu"), Acceleration(), budget_bytes=2**40)(4)
    assert not probe.fits and probe.peak_memory_bytes is None


@pytest.mark.parametrize(
    ("name", "processes", "message"),
    [
        ("cuda:1", 2, "--device cuda:1: one device for 2 processes; use --device cuda"),
        ("cuda:2", 1, "--device cuda:2: this machine has 2 CUDA devices"),
        ("cuda", 3, "3 processes, but this machine has 2 CUDA devices; use at most 2"),
        (None, 3, "3 processes, but this machine has 2 CUDA devices; use at most 2"),
    ],
)
def test_every_process_needs_a_device_of_its_own(
    name: str | None, processes: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match=message):
        find_hardware(name, processes_here=processes)
